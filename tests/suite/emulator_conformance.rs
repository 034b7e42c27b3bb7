//! The emulator's primitives against the formulas of the PTX ISA 9.0, written here from its figures: fragments of
//! ldmatrix, stmatrix, mma.m16n8k16 and wgmma, matrix descriptors, the swizzles of TMA, rounding. Where there is a GPU it
//! is compared too; none has confirmed them yet. `VLM_WRITE_CONFORMANCE=DIR` writes the GPU's outputs, which then belong in
//! `tests/golden/conformance`.

use crate::support::kernels::has_gpu;
use crate::support::repository;
use half::bf16;
use std::io::{Read, Seek};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vlm::base::rng::{Stream, philox};
use vlm::device::conformance::{Case, MapOver, UNTOUCHED, cases, run};
use vlm::device::launcher::{Launcher, Swizzle};
use vlm::device::{conformance, cuda, emulated};
use vlm::host::dropout::{Dropout, factors};

fn emulator() -> Option<Arc<dyn Launcher>> {
    if emulated::builds().is_empty() {
        println!("skipped: no emulator in this build");
        return None;
    }
    Some(emulated::Emulated::open((9, 0)).expect("the emulator opens"))
}

fn bf16s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
}
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
}
fn floats(bytes: &[u8]) -> Vec<f32> {
    words(bytes).into_iter().map(f32::from_bits).collect()
}
fn bytes_of<T: Copy + Into<f32>>(values: &[T]) -> Vec<u8> {
    values.iter().flat_map(|&v| v.into().to_le_bytes()).collect()
}

/// Every case is expected by some formula below, and the emulator gives it under each policy.
#[test]
fn primitives_follow_the_instruction_set() {
    let Some(launcher) = emulator() else { return };
    let mut wrong = Vec::new();
    for policy in [0, 1, 2] {
        emulated::configure("policy", policy).expect("a policy");
        emulated::configure("async", policy).expect("a way to delay");
        for case in cases() {
            let got = run(&launcher, &case).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            if let Err(said) = conformance::compare(&case, &got, &expected(&case)) {
                wrong.push(format!("{}, policy {policy}: {said}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The builds with the race checker and with AddressSanitizer give the same, and no alarm.
#[test]
fn checked_builds_agree() {
    if emulated::builds().is_empty() {
        return println!("skipped: no emulator in this build");
    }
    let asan = Command::new("g++").arg("-print-file-name=libasan.so").output().map(|o| o.stdout).unwrap_or_default();
    let asan = String::from_utf8(asan).expect("a path").trim().to_owned();
    for build in ["race", "asan"] {
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        again.args(["--exact", "emulator_conformance::primitives_follow_the_instruction_set"]);
        again.env("VLM_EMULATOR", build);
        if build == "asan" {
            if !std::path::Path::new(&asan).is_absolute() {
                println!("skipped: the asan build: libasan.so is absent");
                continue;
            }
            again.env("LD_PRELOAD", &asan).env("ASAN_OPTIONS", "detect_leaks=0");
        }
        let done = again.output().expect("it starts");
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("1 passed"), "{build}: {said}");
    }
}

/// A GPU gives the emulator's outputs. Each case has a process of its own: after an illegal instruction the GPU answers
/// nothing more to the one that gave it, and one that waits for ever is ended. `VLM_CONFORMANCE_CASE=all` has them in this
/// process: a tool that watches it needs minutes for each.
#[test]
fn a_gpu_agrees_with_the_emulator() {
    const ONE: &str = "VLM_CONFORMANCE_CASE";
    /// Of a case; the emulator's, on slow cores, too.
    const SECONDS: u64 = 120;
    if !has_gpu() || emulator().is_none() {
        return;
    }
    let hopper = vlm::device::probe::probe().gpus.first().is_some_and(|gpu| gpu.capability == (9, 0));
    let all = cases();
    let mut runnable = all.iter().filter(|c| !c.hopper || hopper);
    if let Ok(name) = std::env::var(ONE) {
        let gpu: Arc<dyn Launcher> = cuda::Cuda::open(0).expect("a GPU");
        return match name.as_str() {
            "all" => {
                let wrong: Vec<String> = runnable.filter_map(|case| on_gpu(&gpu, case).err()).collect();
                assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
            }
            name => {
                let case = runnable.find(|c| c.name == name).expect("a case of this name");
                on_gpu(&gpu, case).unwrap_or_else(|said| panic!("{said}"));
            }
        };
    }
    let mut wrong = Vec::new();
    for case in runnable {
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        again.args(["--exact", "emulator_conformance::a_gpu_agrees_with_the_emulator"]).env(ONE, &case.name);
        let (done, said) = within(Duration::from_secs(SECONDS), &mut again);
        if !done || !said.contains("1 passed") {
            wrong.push(format!("{}: {said}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Whether a program ends well within a time, and what it says; one that takes longer is ended.
fn within(limit: Duration, command: &mut Command) -> (bool, String) {
    let mut file = tempfile::tempfile().expect("a file");
    let [out, err] = [(); 2].map(|()| file.try_clone().expect("its handle"));
    let mut child = command.stdout(out).stderr(err).spawn().expect("it starts");
    let start = Instant::now();
    let done = loop {
        match child.try_wait().expect("it can be asked") {
            Some(status) => break status.success(),
            None if start.elapsed() > limit => {
                child.kill().expect("it can be ended");
                child.wait().expect("it ends");
                break false;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    file.rewind().expect("its start");
    let mut said = Vec::new();
    file.read_to_end(&mut said).expect("what it said");
    let late = if start.elapsed() > limit { format!("not done after {limit:?}\n") } else { String::new() };
    (done, late + &String::from_utf8_lossy(&said))
}

#[test]
fn what_waits_for_ever_is_ended() {
    let (done, said) = within(Duration::from_millis(500), Command::new("sh").args(["-c", "echo hail; exec sleep 60"]));
    assert!(!done && said == "not done after 500ms\nhail\n", "{said}");
    assert_eq!(within(Duration::from_secs(60), Command::new("echo").arg("hail")), (true, "hail\n".into()));
}

fn on_gpu(gpu: &Arc<dyn Launcher>, case: &Case) -> Result<(), String> {
    let emulator = emulator().expect("an emulator");
    let named = |said: String| format!("{}: {said}", case.name);
    let on_gpu = run(gpu, case).map_err(|e| named(e.to_string()))?;
    if let Some(folder) = std::env::var_os("VLM_WRITE_CONFORMANCE").map(std::path::PathBuf::from) {
        std::fs::create_dir_all(&folder).expect("the folder");
        std::fs::write(folder.join(format!("{}.bin", case.name)), &on_gpu).expect("the output");
    }
    let wanted = run(&emulator, case).map_err(|e| named(e.to_string()))?;
    conformance::compare(case, &on_gpu, &wanted).map_err(|said| named(said.to_string()))
}

/// The committed outputs of a GPU, where there are any.
#[test]
fn primitives_give_what_a_gpu_gave() {
    let folder = repository().join("tests/golden/conformance");
    if !folder.exists() {
        println!("skipped: no outputs of a GPU in {}", folder.display());
        return;
    }
    let Some(launcher) = emulator() else { return };
    for case in cases() {
        let golden = std::fs::read(folder.join(format!("{}.bin", case.name))).expect("an output for every case");
        let got = run(&launcher, &case).expect("the case runs");
        if let Err(said) = conformance::compare(&case, &golden, &got) {
            panic!("{}: {said}", case.name);
        }
    }
}

/// What reads a row, a matrix or a step too far must see other numbers.
#[test]
fn inputs_do_not_repeat() {
    let numbers = bf16s(&conformance::pattern_bf16(1 << 16));
    for distance in (1..=16).chain((4..15).map(|bits| 1 << bits)).chain([72, 104, 200, 216]) {
        let pieces = numbers.chunks(8).zip(numbers[distance..].chunks(8));
        let same = pieces.filter(|(a, b)| a == b).count();
        assert!(same == 0, "{same} pieces of 16 bytes are the same {distance} numbers on");
    }
}

fn expected(case: &Case) -> Vec<u8> {
    let name = case.name.as_str();
    match name {
        "pack_bf16" => pack(case),
        "approximations" => approximations(case),
        "random" => random(case),
        "dropout" => dropout(case),
        "reductions" => reductions(case),
        "shuffles" => shuffles(case),
        "cp_async" => cp_async(case),
        "mma_16816" => mma(case),
        "named_barriers" => [1u32, 12, 123, 1234].iter().flat_map(|v| v.to_le_bytes()).collect(),
        "atomics" => atomics(case),
        "counter" => counter(case),
        "ordered_sums" => ordered_sums(case),
        "setmaxnreg_40_232" => setmaxnreg(case, 208),
        "setmaxnreg_24_240" => setmaxnreg(case, 216),
        "wgmma_two_groups" => two_groups(case),
        // A new barrier is in phase 0: the phase of parity 1 counts as ended. Two arrivals end a phase.
        "mbarrier_phases" => [0, 1, 0, 1, 1, 0, 1, 0, 0, 1].iter().flat_map(|v: &u32| v.to_le_bytes()).collect(),
        _ if name.starts_with("ldmatrix") || name.starts_with("stmatrix") => matrices(case),
        _ if name.starts_with("tma_load") => tma_load(case),
        _ if name.starts_with("tma_store") => tma_store(case),
        _ if name.starts_with("wgmma") => wgmma(case),
        _ => panic!("nothing is expected of {name}"),
    }
}

/// Round to nearest, ties to even; cvt.rn.bf16x2 makes any NaN 0x7fff.
fn pack(case: &Case) -> Vec<u8> {
    let round = |f: f32| if f.is_nan() { 0x7fff } else { bf16::from_f32(f).to_bits() };
    floats(&case.x).into_iter().flat_map(|f| round(f).to_le_bytes()).collect()
}

fn approximations(case: &Case) -> Vec<u8> {
    let x = floats(&case.x);
    let functions: [fn(f64) -> f64; 5] = [f64::exp2, f64::tanh, |v| 1.0 / v.sqrt(), f64::exp, f64::ln];
    functions.iter().flat_map(|f| x.iter().flat_map(move |&v| (f(f64::from(v)) as f32).to_le_bytes())).collect()
}

fn random(case: &Case) -> Vec<u8> {
    let key = words(&case.x);
    let blocks: Vec<[u32; 4]> = (0..case.n as u32).map(|i| philox([i, 0, 0, 0], [key[0], key[1]])).collect();
    let bits = blocks.iter().flatten().flat_map(|w| w.to_le_bytes());
    let uniform = blocks.iter().flat_map(|b| ((b[0] >> 8) as f32 / 16_777_216.0).to_le_bytes());
    bits.chain(uniform).collect()
}

/// The host's own stream of a row and a module, and its own factors.
fn dropout(case: &Case) -> Vec<u8> {
    let x = words(&case.x);
    let (row, module) = ([x[0], x[1]], u64::from(x[3]) << 32 | u64::from(x[2]));
    let key = Stream::of_key(row).with(module).key();
    let mut row_factors = vec![f32::NAN; 4 * case.n as usize];
    factors(Dropout { p: f64::from(x[4]) / 2f64.powi(32), module }, row, &mut row_factors);
    let kept = row_factors.chunks(4).map(|f| (0..4).map(|w| u32::from(f[w] > 0.0) << w).sum::<u32>());
    key.into_iter().chain(kept).flat_map(u32::to_le_bytes).collect()
}

/// A tree over lane distances 16, 8, 4, 2, 1, the same in every lane.
fn tree<T: Copy>(mut v: Vec<T>, f: fn(T, T) -> T) -> Vec<T> {
    for distance in [16, 8, 4, 2, 1] {
        v = (0..32).map(|l| f(v[l], v[l ^ distance])).collect();
    }
    v
}

/// Trees within warps, and for the block's sum one over theirs.
fn reductions(case: &Case) -> Vec<u8> {
    let x = floats(&case.x);
    let warp_sum: Vec<f32> = x.chunks(32).flat_map(|w| tree(w.to_vec(), |a, b| a + b)).collect();
    let warp_max: Vec<f32> = x.chunks(32).flat_map(|w| tree(w.to_vec(), f32::max)).collect();
    let firsts = (0..32).map(|l| if l < 8 { warp_sum[l * 32] } else { 0.0 }).collect();
    let block_sum = vec![tree(firsts, |a, b| a + b)[0]; 256];
    let sum_of = |w: &[f32]| tree(w.iter().map(|v| 2.0 * f64::from(*v)).collect(), |a, b| a + b)[0];
    let mut warps: Vec<f64> = x.chunks(32).map(sum_of).collect();
    warps.resize(32, 0.0);
    let twice = vec![tree(warps, |a, b| a + b)[0] as f32; 256];
    [warp_sum, warp_max, block_sum, twice].concat().iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn shuffles(case: &Case) -> Vec<u8> {
    let x = words(&case.x);
    let lanes = |f: &dyn Fn(usize) -> u32| (0..32).map(f).collect::<Vec<_>>();
    let ballot = (0..32).fold(0, |b, l| b | (x[l] & 1) << l);
    let all: Vec<Vec<u32>> = vec![
        lanes(&|l| x[if l >= 3 { l - 3 } else { l }]),
        lanes(&|l| x[if l + 5 < 32 { l + 5 } else { l }]),
        lanes(&|l| x[l ^ 6]),
        lanes(&|l| x[l / 8 * 8 + 2]),
        vec![ballot; 32],
        vec![u32::from(x.contains(&7)); 32],
        vec![u32::from(x.iter().all(|&v| v < 1000)); 32],
    ];
    all.concat().iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn cp_async(case: &Case) -> Vec<u8> {
    let first: Vec<u8> = (0..512).map(|i| if i / 16 % 2 == 0 { case.x[i] } else { 0 }).collect();
    let second = (0..128).map(|i| if i / 4 % 3 != 0 { case.x[512 + i] } else { 0 });
    first.iter().copied().chain(first.iter().copied()).chain(second).collect()
}

fn atomics(case: &Case) -> Vec<u8> {
    let x = words(&case.x);
    // The output began as bytes of 0xab.
    let before = u32::from_le_bytes([UNTOUCHED; 4]);
    let sum = x.iter().fold(before, |s, v| s.wrapping_add(*v));
    let max = x.iter().fold(before, |m, v| m.max(*v));
    let or = x.iter().fold(before, |m, v| m | v);
    [sum, max, or, before].iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Each count below n is seen once, whatever the order, and so is what was there at first; inc goes from n - 1 to 0.
fn counter(case: &Case) -> Vec<u8> {
    let seen = u32::from_le_bytes([UNTOUCHED; 4]) + 1;
    let parts: Vec<u32> = words(&case.x).iter().map(|x| 3 * x + 1).collect();
    let threads = case.threads as usize;
    let sums = (0..threads).map(|t| parts[t..].iter().step_by(threads).sum());
    let all: Vec<u32> =
        std::iter::once(0).chain(vec![seen; case.blocks as usize]).chain(parts.clone()).chain(sums).collect();
    all.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Whoever gives registers away adds 1; in the others a number's share of the sum is how many ways lead from it to a number
/// after the rounds, whoever holds it.
fn setmaxnreg(case: &Case, numbers: usize) -> Vec<u8> {
    let x = words(&case.x);
    // shares of the sum, from the last addition back to the first
    let mut shares = vec![1u32; numbers];
    for i in (0..numbers).rev().cycle().take(numbers * case.n as usize) {
        let before = if i > 0 { i - 1 } else { numbers - 1 };
        shares[before] = shares[before].wrapping_add(shares[i]);
    }
    let sum =
        |t: usize| (0..numbers).fold(0u32, |sum, i| sum.wrapping_add(shares[i].wrapping_mul(x[(t + i) % x.len()])));
    (0..x.len()).flat_map(|t| if t < 128 { x[t] + 1 } else { sum(t) }.to_le_bytes()).collect()
}

/// Each block adds once, in the order of the numbers, rounding each time.
fn ordered_sums(case: &Case) -> Vec<u8> {
    let (x, n) = (floats(&case.x), case.n as usize);
    let last = case.blocks as usize - 1;
    let sum = |blocks: usize, i: usize| (1..blocks).fold(x[i], |sum, b| sum + x[b * n + i]);
    [last, last + 1].iter().flat_map(|&blocks| (0..n).flat_map(move |i| sum(blocks, i).to_le_bytes())).collect()
}

/// Element (row, column) of an 8 x 8 matrix is in lane 4 row + column / 2, half column % 2; transposed (column, row).
fn matrices(case: &Case) -> Vec<u8> {
    let transposed = case.name.ends_with("trans");
    let count = if case.name.contains("x4") { 4 } else { 2 };
    let of = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
    let mut out = vec![UNTOUCHED; 512];
    for m in 0..count {
        for row in 0..8 {
            for column in 0..8 {
                let (r, c) = if transposed { (column, row) } else { (row, column) };
                let in_memory = m * 64 + row * 8 + column;
                let in_register = (4 * r + c / 2) * 8 + m * 2 + c % 2;
                let (from, to) =
                    if case.name.starts_with("ld") { (in_memory, in_register) } else { (in_register, in_memory) };
                out[2 * to..2 * to + 2].copy_from_slice(&of(&case.x, from).to_le_bytes());
            }
        }
    }
    out
}

/// "Matrix Fragments for mma.m16n8k16 with floating point type": with g = lane / 4 and t = lane % 4, element i of A is
/// at row g + 8 where i is 2, 3, 6 or 7 and column 2 t + i % 2 + 8 where i >= 4; of B at row 2 t + i % 2 + 8 where
/// i >= 2 and column g; of D at row g + 8 where i >= 2 and column 2 t + i % 2.
fn mma(case: &Case) -> Vec<u8> {
    let numbers = bf16s(&case.x[..768]);
    let before = floats(&case.x[768..]);
    let (mut a, mut b, mut d) = ([[0.0f32; 16]; 16], [[0.0f32; 8]; 16], [[0.0f32; 8]; 16]);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..8 {
            let row = if matches!(i, 2 | 3 | 6 | 7) { g + 8 } else { g };
            a[row][2 * t + i % 2 + if i >= 4 { 8 } else { 0 }] = numbers[lane * 8 + i];
        }
        for i in 0..4 {
            b[2 * t + i % 2 + if i >= 2 { 8 } else { 0 }][g] = numbers[256 + lane * 4 + i];
            d[g + if i >= 2 { 8 } else { 0 }][2 * t + i % 2] = before[lane * 4 + i];
        }
    }
    for row in 0..16 {
        for column in 0..8 {
            d[row][column] += (0..16).map(|k| a[row][k] * b[k][column]).sum::<f32>();
        }
    }
    let of = |lane: usize, i: usize| d[lane / 4 + if i >= 2 { 8 } else { 0 }][2 * (lane % 4) + i % 2];
    (0..32).flat_map(|l| (0..4).flat_map(move |i| of(l, i).to_le_bytes())).collect()
}

/// The swizzle modes exchange 16-byte chunks: bits 4.. of the address are XORed with bits 7.. of it.
fn swizzle(swizzle: Swizzle, offset: usize) -> usize {
    let chunks = match swizzle {
        Swizzle::None => 1,
        Swizzle::Bytes32 => 2,
        Swizzle::Bytes64 => 4,
        Swizzle::Bytes128 => 8,
    };
    offset ^ ((offset / 128 % chunks) * 16)
}

/// Visits (byte of the box in its own order, byte of the tensor or none outside).
fn each_box_byte(case: &Case, mut visit: impl FnMut(usize, Option<usize>)) {
    let MapOver { dtype, sizes, strides_bytes, box_sizes, .. } = case.map.as_ref().expect("a map");
    let element = dtype.bytes() as i64;
    let depth = *box_sizes.get(2).unwrap_or(&1) as usize;
    let (width, height) = (box_sizes[0] as usize, box_sizes[1] as usize);
    for z in 0..depth {
        for y in 0..height {
            for x in 0..width {
                let at = [x, y, z].map(|v| v as i64);
                let at: Vec<i64> = (0..sizes.len()).map(|d| at[d] + i64::from(case.option[d])).collect();
                let inside = at.iter().zip(sizes).all(|(&a, &s)| (0..s as i64).contains(&a));
                let of_tensor =
                    at[0] * element + at[1..].iter().zip(strides_bytes).map(|(&a, &s)| a * s as i64).sum::<i64>();
                for byte in 0..element as usize {
                    let of_box = ((z * height + y) * width + x) * element as usize + byte;
                    visit(of_box, inside.then(|| of_tensor as usize + byte));
                }
            }
        }
    }
}

fn tma_load(case: &Case) -> Vec<u8> {
    let how = case.map.as_ref().expect("a map").swizzle;
    let mut out = vec![0; case.y_bytes];
    each_box_byte(case, |of_box, of_tensor| out[swizzle(how, of_box)] = of_tensor.map_or(0, |t| case.x[t]));
    out
}

fn tma_store(case: &Case) -> Vec<u8> {
    let how = case.map.as_ref().expect("a map").swizzle;
    let mut out = vec![UNTOUCHED; case.y_bytes];
    each_box_byte(case, |of_box, of_tensor| {
        if let Some(t) = of_tensor {
            out[t] = case.x[swizzle(how, of_box)];
        }
    });
    out
}

/// Shared address of an operand's element, where its descriptor says `start`: "Strides" and "Canonical Layouts" of the PTX
/// ISA, in units of 8 rows (or 8 values of k) by one swizzle span. Swizzles go by addresses.
fn operand_at(start: usize, layout: &str, along_k: bool, [leading, stride]: [usize; 2], mn: usize, k: usize) -> usize {
    let span = match layout {
        "sw128" => 64,
        "sw64" => 32,
        "sw32" => 16,
        _ => 8,
    };
    let how = match layout {
        "sw128" => Swizzle::Bytes128,
        "sw64" => Swizzle::Bytes64,
        "sw32" => Swizzle::Bytes32,
        _ => Swizzle::None,
    };
    let offset = match (along_k, layout) {
        // 8 x 8 matrices of 128 contiguous bytes.
        (true, "none") => mn / 8 * stride + k / 8 * leading + mn % 8 * 16 + k % 8 * 2,
        (false, "none") => mn / 8 * stride + k / 8 * leading + k % 8 * 16 + mn % 8 * 2,
        // Rows of one span.
        (true, _) => mn / 8 * stride + mn % 8 * span * 2 + k * 2,
        (false, _) => mn / span * leading + k / 8 * stride + k % 8 * span * 2 + mn % span * 2,
    };
    swizzle(how, start + offset)
}

/// Where A's element is in its registers, [128][8]: warp w has rows 16 w .. 16 w + 15, as the A fragment of mma.m16n8k16.
fn in_registers(row: usize, k: usize) -> usize {
    let (warp, r) = (row / 16, row % 16);
    let lane = warp * 32 + r % 8 * 4 + k % 8 / 2;
    lane * 8 + k / 8 * 4 + r / 8 * 2 + k % 2
}

/// D registers: "Register Fragment layout for wgmma.mma_async.m64nNk16 accumulator matrix D", of the sums over `depth` onto
/// `before`.
fn products(
    n: usize,
    depth: usize,
    before: f32,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<u8> {
    let mut out = Vec::new();
    for thread in 0..128 {
        for i in 0..n / 2 {
            let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            out.push(before + (0..depth).map(|k| a(row, k) * b(column, k)).sum::<f32>());
        }
    }
    bytes_of(&out)
}

fn wgmma(case: &Case) -> Vec<u8> {
    let parts: Vec<&str> = case.name.split('_').collect();
    let from_registers = parts[1].starts_with("rs");
    let n: usize = parts[1].trim_start_matches(char::is_alphabetic).parse().expect("N");
    let (layout, majors) = (parts[3], parts[2]);
    let depth = parts.get(4).and_then(|part| part.strip_prefix('k')).map_or(16, |k| k.parse().expect("K"));
    let numbers = bf16s(&case.x);
    let option: Vec<usize> = case.option.iter().map(|&o| o as usize).collect();
    let (a_along_k, b_along_k) =
        if from_registers { (true, majors == "k") } else { (majors.starts_with('k'), majors.ends_with('k')) };
    let a = |row: usize, k: usize| match from_registers {
        true => numbers[in_registers(row, k)],
        false => numbers[operand_at(0, layout, a_along_k, [option[0], option[1]], row, k) / 2],
    };
    // behind the registers
    let shared = if from_registers { 1024 } else { 0 };
    let b = |column: usize, k: usize| {
        numbers[shared + operand_at(option[4], layout, b_along_k, [option[2], option[3]], column, k) / 2]
    };
    products(n, depth, if from_registers { 0.0 } else { 1.0 }, a, b)
}

/// Tiles of 128 columns lie in halves of 64, one behind the other.
fn two_groups(case: &Case) -> Vec<u8> {
    const LEFT_HALF: usize = 64 * 128;
    const RIGHT_HALF: usize = 128 * 128;
    let numbers = bf16s(&case.x);
    let (registers, shared) = numbers.split_at(8 * 128 * 8);
    let rows = |start: usize, half: usize| {
        move |row: usize, k: usize| {
            shared[operand_at(start + k / 64 * half, "sw128", true, [16, 1024], row, k % 64) / 2]
        }
    };
    let weights = |row: usize, k: usize| registers[k / 16 * 1024 + in_registers(row, k % 16)];
    let values = |column: usize, k: usize| {
        shared[operand_at(2 * (LEFT_HALF + RIGHT_HALF), "sw128", false, [RIGHT_HALF, 1024], column, k) / 2]
    };
    let first = products(128, 128, 0.0, rows(0, LEFT_HALF), rows(2 * LEFT_HALF, RIGHT_HALF));
    [first, products(128, 128, 1.0, weights, values)].concat()
}
