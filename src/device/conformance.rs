//! Conformance: one small launch for each primitive that the kernels are made of (`cuda/conformance*.cu`), whose raw
//! output a GPU and the emulator must agree on. `tests/suite/emulator_conformance.rs` lays the emulator's beside the
//! formulas of the PTX ISA and, where there is a GPU, beside the GPU's.

use super::launcher::{Allocation, Launch, Launcher, MapType, Swizzle, TensorMap, TensorMapShape};
use crate::base::Result;
use half::bf16;
use std::sync::Arc;

crate::arguments! {
    /// `ConformanceArgs` of `cuda/conformance.cuh`.
    pub struct ConformanceArgs {
        pub map: TensorMap,
        pub x: u64,
        pub y: u64,
        pub n: i32,
        pub option: [i32; 5],
    }
}

/// How near two devices must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nearness {
    /// The same bytes.
    Exact,
    /// f32 numbers by the special function unit: |a - b| <= (|b| + 1/8) / 1024.
    Approximate,
}

/// A tensor map over a case's input or output.
#[derive(Debug, Clone)]
pub struct MapOver {
    pub over_output: bool,
    pub dtype: MapType,
    pub sizes: Vec<u64>,
    pub strides_bytes: Vec<u64>,
    pub box_sizes: Vec<u32>,
    pub swizzle: Swizzle,
}

/// One launch with its input; what the numbers mean is said in the kernel's comment.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub x: Vec<u8>,
    pub y_bytes: usize,
    pub n: i32,
    pub option: [i32; 5],
    pub map: Option<MapOver>,
    pub shared_bytes: u32,
    pub nearness: Nearness,
    pub hopper: bool,
}

/// What the output holds where a kernel writes nothing.
pub const UNTOUCHED: u8 = 0xab;

/// Runs a case; the output's bytes.
pub fn run(launcher: &Arc<dyn Launcher>, case: &Case) -> Result<Vec<u8>> {
    let x = Allocation::new(launcher, case.x.len())?;
    let y = Allocation::new(launcher, case.y_bytes)?;
    x.write(0, &case.x)?;
    y.fill(0, case.y_bytes, UNTOUCHED)?;
    let map = match &case.map {
        None => TensorMap([0; 16]),
        Some(m) => launcher.tensor_map(&TensorMapShape {
            dtype: m.dtype,
            address: if m.over_output { y.address() } else { x.address() },
            sizes: &m.sizes,
            strides_bytes: &m.strides_bytes,
            box_sizes: &m.box_sizes,
            swizzle: m.swizzle,
        })?,
    };
    let arguments = ConformanceArgs { map, x: x.address(), y: y.address(), n: case.n, option: case.option };
    let launch =
        Launch { kernel: case.kernel, grid: [case.blocks, 1, 1], block: case.threads, shared_bytes: case.shared_bytes };
    // SAFETY: the struct is laid out as the kernel's (a test compares them); the cases below size x and y for what each
    // kernel reads and writes; both live until the read below has waited for the launch.
    unsafe { launcher.launch("conformance", &launch, (&raw const arguments).cast(), size_of::<ConformanceArgs>())? };
    let mut out = vec![0; case.y_bytes];
    y.read(0, &mut out)?;
    Ok(out)
}

/// Whether two outputs of a case agree; else where they first do not.
pub fn compare(case: &Case, got: &[u8], wanted: &[u8]) -> Result<(), String> {
    if got.len() != wanted.len() {
        return Err(format!("{} bytes beside {}", got.len(), wanted.len()));
    }
    let words = |bytes: &[u8]| -> Vec<[u8; 4]> { bytes.as_chunks().0.to_vec() };
    for (i, (a, b)) in words(got).into_iter().zip(words(wanted)).enumerate() {
        let agree = match case.nearness {
            Nearness::Exact => a == b,
            Nearness::Approximate => {
                let (a, b) = (f32::from_le_bytes(a), f32::from_le_bytes(b));
                a == b || (a - b).abs() <= (b.abs() + 0.125) / 1024.0
            }
        };
        if !agree {
            let (a, b) = (u32::from_le_bytes(a), u32::from_le_bytes(b));
            return Err(format!("word {i} is 0x{a:08x}, wanted 0x{b:08x}"));
        }
    }
    Ok(())
}

/// A small whole number, different from its neighbours and, on the whole, from those a row, a tile or any power of 2 away: what
/// reads another place sees another number.
fn pattern(i: usize) -> i32 {
    ((i as u32).wrapping_mul(0x9e37_79b1) >> 27) as i32 - 15
}

/// `count` bf16 numbers of the pattern.
pub fn pattern_bf16(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| bf16::from_f32(pattern(i) as f32).to_le_bytes()).collect()
}

fn words<T: Into<u32>>(values: impl IntoIterator<Item = T>) -> Vec<u8> {
    values.into_iter().flat_map(|v| v.into().to_le_bytes()).collect()
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn case(name: &str, kernel: &'static str, threads: u32, x: Vec<u8>, y_bytes: usize) -> Case {
    Case {
        name: name.into(),
        kernel,
        blocks: 1,
        threads,
        x,
        y_bytes,
        n: 0,
        option: [0; 5],
        map: None,
        shared_bytes: 0,
        nearness: Nearness::Exact,
        hopper: false,
    }
}

/// Bit patterns whose rounding to bf16 is a tie, nearly one, infinite, subnormal, or NaN.
fn rounding_inputs() -> Vec<u32> {
    let mut bits = vec![0, 1 << 31, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0001, 0x7f80_0001, 0x7f7f_ffff];
    for upper in [0x3f80u32, 0x3f81, 0xc2f7, 0x0000, 0x0001, 0x807f, 0x7f7f] {
        for lower in [0x0000u32, 0x0001, 0x7fff, 0x8000, 0x8001, 0xffff] {
            bits.push(upper << 16 | lower);
        }
    }
    bits
}

/// All cases; those of Hopper's primitives need compute capability 9.0.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let inputs = rounding_inputs();
    let n = (inputs.len() / 2) as i32;
    all.push(Case { n, ..case("pack_bf16", "conformance_pack_bf16", 256, words(inputs), 4 * n as usize) });
    let x = floats((0..200).map(|i| 0.05 + i as f32 * 0.04));
    all.push(Case {
        n: 200,
        nearness: Nearness::Approximate,
        ..case("approximations", "conformance_approximations", 256, x, 4 * 1000)
    });
    let key = words([0xdead_beef_u32, 0x0123_4567]);
    all.push(Case { n: 100, ..case("random", "conformance_random", 256, key, 4 * 500) });
    let drop = words([0xdead_beef_u32, 0x0123_4567, 0x89ab_cdef, 0xfedc_ba98, 0x4000_0000]);
    all.push(Case { n: 100, ..case("dropout", "conformance_dropout", 256, drop, 4 * 102) });
    let x = floats((0..256).map(|i| pattern(i) as f32 * 1.5 + i as f32 / 512.0));
    all.push(case("reductions", "conformance_reductions", 256, x, 4 * 1024));
    let x = words((0..32).map(|i| pattern(i).unsigned_abs() * 3 + i as u32));
    all.push(case("shuffles", "conformance_shuffles", 32, x, 4 * 224));
    for kernel in [
        "conformance_ldmatrix_x4",
        "conformance_ldmatrix_x4_trans",
        "conformance_ldmatrix_x2",
        "conformance_ldmatrix_x2_trans",
    ] {
        let x = (0..256u16).flat_map(|i| (i * 257).to_le_bytes()).collect();
        all.push(case(&kernel["conformance_".len()..], kernel, 32, x, 512));
    }
    let mut x = pattern_bf16(256 + 128);
    x.extend(floats((0..128).map(|i| pattern(i) as f32 * 8.0)));
    all.push(case("mma_16816", "conformance_mma_16816", 32, x, 512));
    let x = (0..640).map(|i| (i % 251) as u8).collect();
    all.push(case("cp_async", "conformance_cp_async", 32, x, 512 + 640));
    all.push(case("named_barriers", "conformance_named_barriers", 128, vec![0; 4], 16));
    let x = words((0..512u32).map(|i| i * i % 1009));
    all.push(Case { blocks: 2, ..case("atomics", "conformance_atomics", 256, x, 16) });
    let (blocks, threads) = (65, 128);
    let x = words((0..blocks * threads).map(|i| i * i % 1009));
    let y_bytes = 4 * (1 + blocks + blocks * threads + threads) as usize;
    let n = blocks as i32 - 1;
    all.push(Case { blocks, n, ..case("counter", "conformance_counter", threads, x, y_bytes) });
    all.extend(hopper_cases().into_iter().map(|c| Case { hopper: true, ..c }));
    all
}

fn hopper_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for kernel in ["conformance_stmatrix_x4", "conformance_stmatrix_x4_trans"] {
        let x = (0..256u16).flat_map(|i| (i * 257).to_le_bytes()).collect();
        all.push(case(&kernel["conformance_".len()..], kernel, 32, x, 512));
    }
    all.push(case("mbarrier_phases", "conformance_mbarrier_phases", 32, vec![0; 4], 40));
    for kernel in ["conformance_setmaxnreg_40_232", "conformance_setmaxnreg_24_240"] {
        let x = words((0..384u32).map(|i| i * i % 1009));
        all.push(Case { n: 5, ..case(&kernel["conformance_".len()..], kernel, 384, x, 4 * 384) });
    }
    // fractions of different sizes, so that another order gives other bits
    let (blocks, n) = (40, 1000);
    let mut x = floats((0..blocks * n).map(|i| pattern(i) as f32 / 7.0 * [1.0, 1e3, 1e-3, 17.0][i / n % 4]));
    x.extend([0; 8]);
    all.push(Case {
        blocks: blocks as u32,
        n: n as i32,
        shared_bytes: 4 * n as u32 + 1024,
        ..case("ordered_sums", "conformance_ordered_sums", 64, x, 8 * n)
    });
    all.extend(tma_cases());
    all.extend(wgmma_cases());
    all.extend(wgmma_tiles());
    all
}

fn tma_cases() -> Vec<Case> {
    [tma_swizzles(), tma_cubes(), tma_heads(), tma_beyond_the_tensor(), tma_statistics(), tma_logits()].concat()
}

/// A box with its corner at a place of a tensor, brought from there or, with `store`, left there.
fn tma(store: bool, what: &str, map: &MapOver, at: &[i32]) -> Case {
    let element = map.dtype.bytes();
    let of_box = element * map.box_sizes.iter().product::<u32>() as usize;
    let last = map.sizes.len() - 1;
    let of_tensor = (map.sizes[last] * map.strides_bytes[last - 1]) as usize;
    let (bytes, y_bytes) = if store { (of_box, of_tensor) } else { (of_tensor, of_box) };
    let x = match map.dtype {
        MapType::Bf16 => pattern_bf16(bytes / element),
        MapType::F32 => floats((1..=bytes / element).map(|i| i as f32)),
    };
    let kernel = match (store, at.len()) {
        (false, 2) => "conformance_tma_load_2d",
        (false, _) => "conformance_tma_load_3d",
        (true, 2) => "conformance_tma_store_2d",
        (true, _) => "conformance_tma_store_3d",
    };
    let place = at.iter().map(i32::to_string).collect::<Vec<_>>().join("_");
    let name = format!("{}_{what}_at_{place}", &kernel["conformance_".len()..]);
    let mut option = [0; 5];
    option[..at.len()].copy_from_slice(at);
    Case {
        n: of_box as i32,
        option,
        map: Some(MapOver { over_output: store, ..map.clone() }),
        shared_bytes: of_box as u32 + 1024,
        ..case(&name, kernel, 32, x, y_bytes)
    }
}

/// A map over rows one behind the other.
fn rows_map(dtype: MapType, sizes: [u64; 2], box_sizes: [u32; 2], swizzle: Swizzle) -> MapOver {
    MapOver {
        over_output: false,
        dtype,
        sizes: sizes.to_vec(),
        strides_bytes: vec![sizes[0] * dtype.bytes() as u64],
        box_sizes: box_sizes.to_vec(),
        swizzle,
    }
}

/// Boxes of 8 rows as wide as the swizzle: inside, across each corner and outside. Those of stores begin at no negative
/// coordinate.
fn tma_swizzles() -> Vec<Case> {
    let mut all = Vec::new();
    for (swizzle, width, name) in [
        (Swizzle::None, 16, "none"),
        (Swizzle::Bytes32, 16, "32"),
        (Swizzle::Bytes64, 32, "64"),
        (Swizzle::Bytes128, 64, "128"),
    ] {
        let map = rows_map(MapType::Bf16, [72, 24], [width, 8], swizzle);
        for at in [[8, 3], [-8, -3], [64, 20], [104, 0]] {
            let what = format!("swizzle_{name}");
            all.push(tma(false, &what, &map, &at));
            if at[0] >= 0 {
                all.push(tma(true, &what, &map, &at));
            }
        }
    }
    all
}

fn tma_cubes() -> Vec<Case> {
    let map = MapOver {
        over_output: false,
        dtype: MapType::F32,
        sizes: vec![12, 6, 5],
        strides_bytes: vec![48, 288],
        box_sizes: vec![8, 3, 2],
        swizzle: Swizzle::None,
    };
    let load = [[0, 0, 0], [8, 4, -1], [8, 4, 3]].map(|at| tma(false, "cube", &map, &at));
    let store = [[0, 0, 0], [8, 4, 3]].map(|at| tma(true, "cube", &map, &at));
    [load.to_vec(), store.to_vec()].concat()
}

/// As attention loads the second half of a head 72 wide, of 3 heads in 10 rows, and a half that rows end in.
fn tma_heads() -> Vec<Case> {
    let map = MapOver {
        over_output: false,
        dtype: MapType::Bf16,
        sizes: vec![72, 3, 10],
        strides_bytes: vec![144, 432],
        box_sizes: vec![64, 1, 8],
        swizzle: Swizzle::Bytes128,
    };
    [[64, 1, 3], [0, 2, 6]].map(|at| tma(false, "head", &map, &at)).to_vec()
}

/// Boxes that are larger than their tensor, as products of few rows have them: all of their bytes count, and are zero outside.
/// And of as many rows as a box may have.
fn tma_beyond_the_tensor() -> Vec<Case> {
    let mut all = Vec::new();
    for (sizes, rows, at) in [
        ([200, 1], 16, [0, 0]),
        ([200, 1], 16, [192, 0]),
        ([200, 1], 128, [64, 0]),
        ([200, 1], 128, [192, 0]),
        ([200, 3], 32, [128, 0]),
        ([200, 17], 64, [192, 0]),
        ([24, 1], 16, [0, 0]),
        ([24, 1], 128, [0, 0]),
        ([104, 300], 256, [0, 0]),
        ([104, 300], 256, [64, 100]),
    ] {
        let map = rows_map(MapType::Bf16, sizes, [64, rows], Swizzle::Bytes128);
        all.push(tma(false, &format!("{rows}_of_{}x{}", sizes[1], sizes[0]), &map, &at));
    }
    all
}

/// As attention backward loads its statistics: a row of 528 bytes, in shared memory at a multiple of 128.
fn tma_statistics() -> Vec<Case> {
    let map = rows_map(MapType::F32, [400, 3], [132, 1], Swizzle::None);
    let at = |place| {
        let mut case = tma(false, "statistics", &map, place);
        case.option[3] = 640;
        case.shared_bytes += 640;
        case
    };
    [[0, 0], [12, 1], [300, 1], [396, 2]].iter().map(|place| at(place)).collect()
}

/// As linear_loss stores its logits: inside, at the ends of rows and of columns, and outside.
fn tma_logits() -> Vec<Case> {
    let map = rows_map(MapType::F32, [88, 40], [32, 16], Swizzle::Bytes128);
    [[32, 16], [64, 16], [0, 32], [64, 32], [96, 0]].map(|at| tma(true, "logits", &map, &at)).to_vec()
}

/// Where B begins in shared memory.
const WGMMA_B: i32 = 8192;

/// (kernel, N, leading and stride byte offsets of A, then of B).
#[rustfmt::skip]
const WGMMA: [(&str, i32, [i32; 4]); 29] = [
    ("conformance_wgmma_n64_kk_sw128", 64, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n64_mk_sw128", 64, [2048, 1024, 16, 1024]),
    ("conformance_wgmma_n64_kn_sw128", 64, [16, 1024, 2048, 1024]),
    ("conformance_wgmma_n64_mn_sw128", 64, [2048, 1024, 2048, 1024]),
    ("conformance_wgmma_n64_kk_sw64", 64, [16, 512, 16, 512]),
    ("conformance_wgmma_n64_mn_sw64", 64, [1024, 512, 1024, 512]),
    ("conformance_wgmma_n64_kk_sw32", 64, [16, 256, 16, 256]),
    ("conformance_wgmma_n64_mn_sw32", 64, [512, 256, 512, 256]),
    ("conformance_wgmma_n64_kk_none", 64, [128, 256, 128, 256]),
    ("conformance_wgmma_n64_mn_none", 64, [128, 256, 128, 256]),
    ("conformance_wgmma_n16_kk_sw128", 16, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n16_mn_sw128", 16, [2048, 1024, 2048, 1024]),
    ("conformance_wgmma_n32_kk_sw128", 32, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n80_kk_sw128", 80, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n80_mn_sw128", 80, [2048, 1024, 2048, 1024]),
    ("conformance_wgmma_n96_kk_sw128", 96, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n128_kk_sw128", 128, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n128_mn_sw128", 128, [2048, 1024, 2048, 1024]),
    ("conformance_wgmma_n160_kk_sw128", 160, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n176_kk_sw128", 176, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n176_kn_sw128", 176, [16, 1024, 2048, 1024]),
    ("conformance_wgmma_n192_kk_sw128", 192, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n192_kn_sw128", 192, [16, 1024, 2048, 1024]),
    ("conformance_wgmma_n256_kk_sw128", 256, [16, 1024, 16, 1024]),
    ("conformance_wgmma_n256_kn_sw128", 256, [16, 1024, 2048, 1024]),
    ("conformance_wgmma_rs64_k_sw128", 64, [0, 0, 16, 1024]),
    ("conformance_wgmma_rs64_n_sw128", 64, [0, 0, 2048, 1024]),
    ("conformance_wgmma_rs80_n_sw128", 80, [0, 0, 2048, 1024]),
    ("conformance_wgmma_rs128_n_sw128", 128, [0, 0, 2048, 1024]),
];

/// Steps of k within an atom of a swizzle: B begins so many bytes behind its place.
const WGMMA_STEPS: [(&str, i32); 7] = [
    ("wgmma_n64_kk_sw128", 32),
    ("wgmma_n64_kk_sw128", 64),
    ("wgmma_n64_kk_sw128", 96),
    ("wgmma_n64_kk_sw64", 32),
    ("wgmma_n64_kn_sw128", 2048),
    ("wgmma_n64_kn_sw128", 6144),
    ("wgmma_rs64_n_sw128", 2048),
];

fn wgmma_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (kernel, n, [a_leading, a_stride, b_leading, b_stride]) in WGMMA {
        let from_registers = kernel.contains("_rs");
        let bytes = if from_registers { n * 128 } else { WGMMA_B + n * 128 };
        let x_bytes = bytes + if from_registers { 2048 } else { 0 };
        let x = pattern_bf16(x_bytes as usize / 2);
        all.push(Case {
            n: bytes,
            option: [a_leading, a_stride, b_leading, b_stride, if from_registers { 0 } else { WGMMA_B }],
            shared_bytes: bytes as u32 + 1024,
            ..case(&kernel["conformance_".len()..], kernel, 128, x, 128 * 4 * n as usize / 2)
        });
    }
    for (of, step) in WGMMA_STEPS {
        if let Some(mut case) = all.iter().find(|c| c.name == of).cloned() {
            case.name = format!("{of}_step_{step}");
            case.option[4] += step;
            all.push(case);
        }
    }
    all
}

/// Several operations of a group, over tiles as attention has them.
fn wgmma_tiles() -> Vec<Case> {
    /// Bytes of 128 rows of 64 columns.
    const TILE: i32 = 128 * 128;
    let mut all = Vec::new();
    for (kernel, n) in [("conformance_wgmma_n64_mn_sw128_k128", 64), ("conformance_wgmma_n16_mn_sw128_k128", 16)] {
        all.push(Case {
            n: 2 * TILE,
            option: [TILE, 1024, TILE, 1024, TILE],
            shared_bytes: 2 * TILE as u32 + 1024,
            ..case(&kernel["conformance_".len()..], kernel, 128, pattern_bf16(TILE as usize), 128 * 4 * n / 2)
        });
    }
    // eight steps of registers; 64 rows of the left tile, 128 of each right one
    let (registers, shared) = (8 * 128 * 16, 5 * TILE);
    all.push(Case {
        n: shared,
        shared_bytes: shared as u32 + 1024,
        ..case(
            "wgmma_two_groups",
            "conformance_wgmma_two_groups",
            128,
            pattern_bf16(registers / 2 + shared as usize / 2),
            2 * 128 * 4 * 64,
        )
    });
    all
}
