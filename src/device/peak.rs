//! What GPUs reach at the most, as their maker states it.

/// By the name that the driver gives: 10^12 operations a second of dense products of bf16 with f32 sums, from NVIDIA's data
/// sheets (half of the figure "with sparsity" where only that is given).
const PEAKS: [(&str, f64); 13] = [
    ("NVIDIA H200", 989.5),
    ("NVIDIA H200 NVL", 835.5),
    ("NVIDIA H100 80GB HBM3", 989.5),
    ("NVIDIA H100 NVL", 835.5),
    ("NVIDIA H100 PCIe", 756.5),
    ("NVIDIA A100-SXM4-80GB", 312.0),
    ("NVIDIA A100-SXM4-40GB", 312.0),
    ("NVIDIA A100 80GB PCIe", 312.0),
    ("NVIDIA A100-PCIE-40GB", 312.0),
    ("NVIDIA A40", 149.7),
    ("NVIDIA A10", 125.0),
    ("NVIDIA L40S", 362.05),
    ("NVIDIA L4", 121.0),
];

/// Operations a second; None for a name that is not in the list, such as that of a part of a GPU.
pub(super) fn flops_per_second(name: &str) -> Option<f64> {
    PEAKS.iter().find(|(known, _)| *known == name).map(|(_, tflops)| 1e12 * tflops)
}

#[cfg(test)]
mod tests {
    use super::flops_per_second;

    #[test]
    fn only_whole_known_gpus_have_a_peak() {
        assert_eq!(flops_per_second("NVIDIA H200"), Some(989.5e12));
        assert_eq!(flops_per_second("NVIDIA A100-SXM4-80GB"), Some(312e12));
        for name in ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "emulated sm_90 (plain build)", ""] {
            assert_eq!(flops_per_second(name), None, "{name}");
        }
    }
}
