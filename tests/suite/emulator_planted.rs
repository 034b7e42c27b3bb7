//! Kernels with planted bugs (`cuda/emulator/planted`): each is caught by the plain build of the emulator under its seeds,
//! by the race build in one run, or by both; correct ones give no alarm. The libraries are built in debug builds only.

use crate::support::kernels::seeds;
use crate::support::planted::{Emulator, Map};
use half::bf16;
use std::sync::Barrier;

#[repr(C)]
struct CopiesArgs {
    a: u64,
    b: u64,
    c: u64,
    m: i32,
    n: i32,
    k: i32,
}
#[repr(C)]
struct HopperArgs {
    a: Map,
    b: Map,
    c: Map,
    m: i32,
    n: i32,
    k: i32,
}
#[repr(C)]
struct Pointers {
    a: u64,
    b: u64,
    c: u64,
}
#[repr(C)]
struct RowsArgs {
    x: u64,
    y: u64,
    n: i32,
}

#[repr(C)]
struct CounterArgs {
    x: u64,
    parts: u64,
    counters: u64,
    most: u64,
    y: u64,
}

#[repr(C)]
struct OrderedArgs {
    x: u64,
    sums: u64,
    counters: u64,
    y: u64,
}

/// Small whole numbers, whose products' sums are exact.
fn matrix(rows: usize, columns: usize, of: usize) -> Vec<bf16> {
    (0..rows * columns).map(|i| bf16::from_f32(((i * 5 + i / 7 + of) % 5) as f32 - 2.0)).collect()
}

fn product(a: &[bf16], b: &[bf16], k: usize) -> Vec<f32> {
    let row = |m: &[bf16], i: usize| m[i * k..(i + 1) * k].iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    let columns: Vec<_> = (0..b.len() / k).map(|j| row(b, j)).collect();
    (0..a.len() / k)
        .flat_map(|i| {
            let a = row(a, i);
            columns.iter().map(|b| a.iter().zip(b).map(|(x, y)| x * y).sum()).collect::<Vec<f32>>()
        })
        .collect()
}

/// What ran wrong, in words: the emulator's report, or that the numbers are not these.
fn agree(done: Result<(), String>, got: impl FnOnce() -> Vec<f32>, wanted: &[f32]) -> Result<(), String> {
    done?;
    let got = got();
    let wrong = got.iter().zip(wanted).filter(|(g, w)| g != w).count();
    if wrong == 0 && got.len() == wanted.len() { Ok(()) } else { Err(format!("{wrong} wrong numbers")) }
}

fn copies(e: &Emulator, kernel: &str) -> Result<(), String> {
    let (m, n, k) = (90, 64, 168);
    let (a, b) = (matrix(m, k, 0), matrix(n, k, 1));
    let wanted = product(&a, &b, k);
    let (a, b, c) = (e.buffer(&a, a.len() * 2), e.buffer(&b, b.len() * 2), e.buffer::<u8>(&[], m * n * 4));
    let arguments = CopiesArgs { a: a.address, b: b.address, c: c.address, m: m as i32, n: n as i32, k: k as i32 };
    agree(e.launch(kernel, [1, 2, 1], 128, 0, &arguments), || c.read(), &wanted)
}

fn hopper(e: &Emulator, kernel: &str) -> Result<(), String> {
    // Three tiles for two blocks, five steps in a ring of four: the ring goes round within and across tiles.
    let (m, n, k) = (384, 128, 320);
    let (a, b) = (matrix(m, k, 0), matrix(n, k, 1));
    let wanted: Vec<f32> = product(&a, &b, k).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
    let (a, b, c) = (e.buffer(&a, a.len() * 2), e.buffer(&b, b.len() * 2), e.buffer::<u8>(&[], m * n * 2));
    let arguments = HopperArgs {
        a: e.map(&a, k as u64, m as u64, [64, 128]),
        b: e.map(&b, k as u64, n as u64, [64, 128]),
        c: e.map(&c, n as u64, m as u64, [64, 64]),
        m: m as i32,
        n: n as i32,
        k: k as i32,
    };
    let shared = 4 * 32768 + 32768 + 1024 + 64;
    let got = || c.read::<u16>().into_iter().map(|v| bf16::from_bits(v).to_f32()).collect();
    agree(e.launch(kernel, [2, 1, 1], 384, shared, &arguments), got, &wanted)
}

fn stored(e: &Emulator, kernel: &str) -> Result<(), String> {
    let (a, b) = (matrix(64, 64, 0), matrix(128, 64, 1));
    let wanted = product(&a, &b, 64);
    let (a, b, c) = (e.buffer(&a, a.len() * 2), e.buffer(&b, b.len() * 2), e.buffer::<u8>(&[], 64 * 128 * 4));
    let arguments = Pointers { a: a.address, b: b.address, c: c.address };
    agree(e.launch(kernel, [1, 1, 1], 128, 192 * 128 + 1024, &arguments), || c.read(), &wanted)
}

/// Rows of whole numbers; the kernel's name says what is made of them.
fn rows(e: &Emulator, kernel: &str) -> Result<(), String> {
    let (rows, n) = (5, 250);
    let x: Vec<f32> = (0..rows * n).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
    let of = |f: &dyn Fn(&[f32]) -> Vec<f32>| x.chunks(n).flat_map(f).collect::<Vec<f32>>();
    let wanted = if kernel.contains("reverse") {
        of(&|r| r.iter().rev().copied().collect())
    } else {
        let squares = of(&|r| vec![r.iter().map(|v| v * v).sum()]);
        of(&|r| vec![r.iter().sum()]).into_iter().chain(squares).collect()
    };
    let (x, y) = (e.buffer(&x, x.len() * 4), e.buffer::<u8>(&[], wanted.len() * 4));
    let arguments = RowsArgs { x: x.address, y: y.address, n: n as i32 };
    agree(e.launch(kernel, [rows as u32, 1, 1], 256, 0, &arguments), || y.read(), &wanted)
}

/// Sums over blocks, of fractions: bit for bit only in the order of blocks. Twice on the same counters.
fn counter(e: &Emulator, kernel: &str) -> Result<(), String> {
    let (blocks, threads) = (6, 256);
    let x: Vec<f32> = (0..blocks * threads).map(|i| (i * 7 % 1009) as f32 / 13.0 + 0.1).collect();
    let sum = |t: usize| (0..blocks).fold(0.0, |sum, b| sum + x[b * threads + t] * 3.0);
    let mut wanted: Vec<f32> = (0..threads).map(sum).collect();
    if kernel.contains("maximum") {
        wanted.push(x.iter().copied().fold(0.0, f32::max));
    }
    let x = e.buffer(&x, x.len() * 4);
    let (counters, most) = (e.buffer(&[0u32; 7], 28), e.buffer(&[0u32], 4));
    for _ in 0..2 {
        let (parts, y) = (e.buffer::<u8>(&[], x.length), e.buffer::<u8>(&[], (threads + 1) * 4));
        let arguments = CounterArgs {
            x: x.address,
            parts: parts.address,
            counters: counters.address,
            most: most.address,
            y: y.address,
        };
        let done = e.launch(kernel, [blocks as u32, 1, 1], threads as u32, 0, &arguments);
        agree(done, || y.read()[..wanted.len()].to_vec(), &wanted)?;
    }
    if counters.read::<u32>() == [0; 7] { Ok(()) } else { Err("wrong counters".into()) }
}

/// Sums over blocks of fractions, bit for bit only in the order of the numbers that blocks draw.
fn ordered(e: &Emulator, kernel: &str) -> Result<(), String> {
    let (blocks, threads) = (24, 64); // few would begin in their order by chance
    let x: Vec<f32> = (0..blocks * threads).map(|i| (i * 7 % 1009) as f32 / 13.0 + 0.1).collect();
    let wanted: Vec<f32> = (0..threads).map(|t| (1..blocks).fold(x[t], |sum, b| sum + x[b * threads + t])).collect();
    let x = e.buffer(&x, x.len() * 4);
    let (sums, counters) = (e.buffer::<u8>(&[], threads * 4), e.buffer(&[0u32; 2], 8));
    let y = e.buffer::<u8>(&[], threads * 4);
    let arguments = OrderedArgs { x: x.address, sums: sums.address, counters: counters.address, y: y.address };
    agree(e.launch(kernel, [blocks as u32, 1, 1], threads as u32, 0, &arguments), || y.read(), &wanted)
}

type Program = fn(&Emulator, &str) -> Result<(), String>;

/// The seeds under which the plain build finds something, and the first thing it says.
fn found_by_seeds(e: &Emulator, program: Program, kernel: &str) -> (i64, String) {
    let (mut found, mut said) = (0, String::new());
    for seed in 1..=seeds() {
        e.set(c"seed", seed);
        if let Err(why) = program(e, kernel) {
            found += 1;
            said = why;
        }
    }
    (found, said)
}

/// Correct kernels, under every policy and delay: no alarm, in no build.
#[test]
fn correct_kernels_give_no_alarm() {
    let correct: [(Program, &str); 13] = [
        (copies, "planted_copies_correct"),
        (hopper, "planted_hopper_correct"),
        (stored, "planted_stored_correct"),
        (rows, "planted_rows_correct"),
        (rows, "planted_rows_reverse_correct"),
        (rows, "planted_rows_reverse_by_atomics_correct"),
        (counter, "planted_counter_correct"),
        (counter, "planted_counter_maximum_correct"),
        (counter, "planted_counter_group_correct"),
        (counter, "planted_counter_warp_correct"),
        (counter, "planted_counter_thread_correct"),
        (counter, "planted_counter_tree_correct"),
        (ordered, "planted_ordered_correct"),
    ];
    let (Some(plain), Some(race)) = (Emulator::open("planted"), Emulator::open("planted-race")) else { return };
    for (program, kernel) in correct {
        for seed in 1..=seeds() {
            for policy in 0..3 {
                plain.set(c"seed", seed);
                plain.set(c"policy", policy);
                plain.set(c"async", (policy + seed) % 3);
                program(&plain, kernel).unwrap_or_else(|why| panic!("{kernel}, seed {seed}, policy {policy}: {why}"));
            }
        }
        for seed in 1..=seeds().min(5) {
            race.set(c"seed", seed);
            program(&race, kernel).unwrap_or_else(|why| panic!("{kernel} in the race build: {why}"));
        }
    }
}

/// What catches a bug.
#[derive(Clone, Copy)]
enum Catch {
    /// Every seed of the plain build, and the race build.
    Both,
    /// The race build, in any run; seeds of the plain build may or may not.
    Race,
    /// Every seed of the plain build; there is nothing unordered in it.
    Plain,
}

#[test]
fn planted_bugs_are_caught() {
    use Catch::{Both, Plain, Race};
    let bugs: [(Program, &str, Catch, &str); 63] = [
        (copies, "planted_copies_no_wait", Both, "race:"),
        (copies, "planted_copies_no_barrier_before_read", Both, "race:"),
        (copies, "planted_copies_no_barrier_before_refill", Both, "race:"),
        (copies, "planted_copies_row_past_the_end", Both, "past the end"),
        (copies, "planted_copies_read_past_the_end", Race, "past the end"),
        (copies, "planted_copies_early_return", Both, "deadlock"),
        (rows, "planted_rows_shared_scratch", Race, "shared address"),
        (rows, "planted_rows_blocks_overlap", Both, "by block"),
        (rows, "planted_rows_reverse_unordered", Race, "device allocation"),
        (rows, "planted_rows_reverse_by_atomics_unordered", Race, "device allocation"),
        (rows, "planted_rows_shared_atomic_after_read", Race, "after the read by thread 1"),
        (rows, "planted_rows_shared_atomic_after_read_and_atomic", Race, "after the read by thread 1"),
        (rows, "planted_rows_atomic_after_read_and_atomic", Race, "after the read by thread 1"),
        (rows, "planted_rows_shared_atomic_after_write", Race, "after the write by thread 1"),
        (rows, "planted_rows_shared_atomic_before_read", Race, "after the atomic by thread 1"),
        (rows, "planted_rows_atomic_after_read", Race, "after the read by thread 1"),
        (rows, "planted_rows_atomic_after_write", Race, "after the write by thread 1"),
        (rows, "planted_rows_atomic_before_read", Race, "after the atomic by thread 1"),
        (counter, "planted_counter_no_barrier_before", Race, "a read of byte"),
        (counter, "planted_counter_no_barrier_after", Race, "shared address"),
        (counter, "planted_counter_no_arrival", Race, "by block"),
        (counter, "planted_counter_relaxed", Race, "after the write by block"),
        (counter, "planted_counter_not_last", Race, "by block"),
        (counter, "planted_counter_no_return", Both, "wrong numbers"),
        (counter, "planted_counter_peek", Race, "after the atomic by block"),
        (counter, "planted_counter_late", Race, "after the write by block"),
        (counter, "planted_counter_read_late", Race, "a write of byte"),
        (counter, "planted_counter_maximum_early", Race, "allocation of 4 bytes"),
        (counter, "planted_counter_group_other", Race, "a read of byte"),
        (counter, "planted_counter_left_arrival", Both, "32 of 128 threads arrived at barrier 1"),
        (counter, "planted_counter_warp_no_syncwarp", Race, "after the write by block"),
        (counter, "planted_counter_thread_by_atomics", Race, "a read of byte"),
        (counter, "planted_counter_tree_of_firsts", Race, "by block"),
        (ordered, "planted_ordered_no_wait", Race, "a TMA store"),
        (ordered, "planted_ordered_wait_for_less", Race, "a TMA store"),
        (ordered, "planted_ordered_no_fence", Both, "without a fence.proxy.async.global"),
        (ordered, "planted_ordered_no_short_fence", Race, "fence.proxy.async"),
        (ordered, "planted_ordered_no_barrier", Race, "shared address"),
        (ordered, "planted_ordered_only_read", Race, "by block"),
        (ordered, "planted_ordered_no_wait_at_all", Both, "still reads shared memory"),
        (ordered, "planted_ordered_arrive_first", Race, "by block"),
        (ordered, "planted_ordered_relaxed", Race, "by block"),
        (ordered, "planted_ordered_no_arrival", Both, "a counter that comes to 1, which no block that runs will"),
        (ordered, "planted_ordered_by_index", Plain, "a counter"),
        (ordered, "planted_ordered_no_barrier_after_wait", Race, "a read of byte"),
        (ordered, "planted_ordered_unaligned", Both, "not aligned to 16 bytes"),
        (hopper, "planted_hopper_no_wgmma_wait", Both, ""),
        (hopper, "planted_hopper_released_early", Race, "race: a write"),
        (hopper, "planted_hopper_producer_phase", Both, "deadlock"),
        (hopper, "planted_hopper_consumer_phase", Both, ""),
        (hopper, "planted_hopper_no_full_wait", Both, ""),
        (hopper, "planted_hopper_no_empty_wait", Both, ""),
        (hopper, "planted_hopper_expected_bytes", Both, ""),
        (hopper, "planted_hopper_no_barrier_after_init", Race, ""),
        (hopper, "planted_hopper_no_fence_after_init", Both, "fence.mbarrier_init"),
        (hopper, "planted_hopper_no_wgmma_fence", Both, "wgmma.fence"),
        (hopper, "planted_hopper_no_proxy_fence", Both, "fence.proxy.async"),
        (hopper, "planted_hopper_no_barrier_before_store", Race, ""),
        (hopper, "planted_hopper_no_store_wait", Both, ""),
        (hopper, "planted_hopper_no_last_release", Both, "deadlock"),
        (hopper, "planted_hopper_box_between", Both, "no multiple of 16"),
        (hopper, "planted_hopper_box_before", Both, "TMA store: a box that begins at coordinate -"),
        (stored, "planted_stored_no_wait", Plain, "wrong"),
    ];
    let (Some(plain), Some(race)) = (Emulator::open("planted"), Emulator::open("planted-race")) else { return };
    let mut missed = Vec::new();
    for (program, kernel, catch, words) in bugs {
        let (found, by_seeds) = found_by_seeds(&plain, program, kernel);
        if matches!(catch, Both | Plain) && found < seeds() {
            missed.push(format!("{kernel}: {found} of {} seeds: {by_seeds}", seeds()));
        }
        for seed in 1..=seeds().min(if matches!(catch, Plain) { 0 } else { 5 }) {
            race.set(c"seed", seed);
            let said = program(&race, kernel).err();
            if !said.as_ref().is_some_and(|said| said.contains(words)) {
                missed.push(format!("{kernel} in the race build, seed {seed}: {said:?}"));
            }
        }
    }
    // Ordinary stores that wgmma reads: only the race build sees who wrote.
    for (kernel, words) in [("planted_stored_no_fence", "fence.proxy.async"), ("planted_stored_no_barrier", "race:")] {
        let said = stored(&race, kernel).err().unwrap_or_default();
        if !said.contains(words) {
            missed.push(format!("{kernel}: {said:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Single faults become errors that name kernel, block and thread, and the process goes on.
#[test]
fn faults_become_errors() {
    let Some(e) = Emulator::open("planted") else { return };
    let faults = [
        ("write_far", 64, 32, "invalid access"),
        ("write_one_past", 64, 32, "device allocation of 256 bytes"),
        ("write_one_before", 64, 32, "device allocation of 256 bytes"),
        ("shared_past_the_end", 32, 32, "outside of the shared array s_x"),
        ("misaligned", 1, 32, "not aligned to 16 bytes"),
        ("register_index", 5, 32, "index 5 of an array 'float [4]'"),
        ("shift", 40, 32, "a shift"),
        ("overflow", 5, 32, "signed overflow"),
        ("divide", 3, 32, "division by zero"),
        ("float_to_int", 1, 32, "made an integer"),
        ("trap", 1, 32, "n must not be 1"),
        ("divergent_shuffle", 1, 32, "deadlock"),
        ("unequal_barriers", 32, 64, "threads 0-31: barrier 0 (32 of 64 threads have arrived); threads 32-63: exited"),
        ("lane_outside_mask", 1, 32, "reads lane 20"),
        ("stack", 3, 32, "stack of a thread"),
    ];
    for seed in 1..=4 {
        e.set(c"seed", seed);
        for (fault, n, threads, words) in faults {
            let (x, y) = (e.buffer(&[1.0f32; 64], 256), e.buffer(&[1.0f32; 64], 256));
            let arguments = RowsArgs { x: x.address, y: y.address, n };
            let kernel = format!("planted_fault_{fault}");
            let said = e.launch(&kernel, [1, 1, 1], threads, 0, &arguments).expect_err(&kernel);
            assert!(said.contains(words), "{kernel}: {said}");
            assert!(said.contains(&format!("[kernel {kernel}")), "{said}");
        }
    }
    for (fault, words) in [("in_shared", "the counter lies in shared memory"), ("of_none", "a counter of no arrivals")]
    {
        let counters = e.buffer(&[0u32], 4);
        let arguments = CounterArgs { x: 0, parts: 0, counters: counters.address, most: 0, y: 0 };
        let said = e.launch(&format!("planted_fault_counter_{fault}"), [1, 1, 1], 1, 0, &arguments).expect_err(fault);
        assert!(said.contains(words), "{fault}: {said}");
    }
    // Reads of what was never written, or lies just outside, give NaN.
    for fault in ["uninitialised_shared", "read_one_past"] {
        let (x, y) = (e.buffer(&[1.0f32; 63], 252), e.buffer(&[1.0f32; 64], 256));
        let arguments = RowsArgs { x: x.address, y: y.address, n: 63 };
        let done = e.launch(&format!("planted_fault_{fault}"), [1, 1, 1], 32, 0, &arguments);
        assert!(done.is_err() || y.read::<f32>()[0].is_nan(), "{fault}: {done:?}");
    }
}

/// A write past an allocation is the fault of the device that launched it, and of no other that runs at the same time.
#[test]
fn a_write_past_an_allocation_is_blamed_on_its_own_device() {
    let (Some(faulty), Some(correct)) = (Emulator::open("planted"), Emulator::open("planted")) else { return };
    let meet = Barrier::new(2);
    let launches = |e: &Emulator, kernel: &str| {
        // at the beginning of a page: there is room behind it
        e.set(c"placement", 2);
        let (x, y) = (e.buffer(&[1.0f32; 64], 256), e.buffer(&[1.0f32; 64], 256));
        let arguments = RowsArgs { x: x.address, y: y.address, n: 64 };
        let launch = || e.launch(kernel, [1, 1, 1], 256, 0, &arguments);
        let first = launch();
        // what it wrote is there while the other launches
        meet.wait();
        let done: Vec<_> = std::iter::once(first).chain((0..20).map(|_| launch())).collect();
        meet.wait();
        done
    };
    std::thread::scope(|scope| {
        let faults = scope.spawn(|| launches(&faulty, "planted_fault_write_one_past"));
        let correct = launches(&correct, "planted_rows_reverse_correct");
        assert!(correct.iter().all(Result::is_ok), "{correct:?}");
        for done in faults.join().expect("a thread") {
            let said = done.expect_err("a write past the end");
            assert!(said.contains("past the end of a device allocation of 256 bytes"), "{said}");
        }
    });
}

/// What the driver refuses before a launch is refused here too.
#[test]
fn wrong_launches_are_refused() {
    let Some(e) = Emulator::open("planted") else { return };
    let x = e.buffer(&[1.0f32; 64], 256);
    let arguments = RowsArgs { x: x.address, y: x.address, n: 8 };
    let kernel = "planted_rows_correct";
    let cases = [
        (e.launch("no_such_kernel", [1, 1, 1], 32, 0, &arguments), "there is no kernel no_such_kernel"),
        (e.launch(kernel, [1, 1, 1], 257, 0, &arguments), "where the kernel takes 1 to 256"),
        (e.launch(kernel, [1, 1, 1], 0, 0, &arguments), "a block of 0"),
        (e.launch(kernel, [1, 70000, 1], 32, 0, &arguments), "a grid of 1 x 70000 x 1"),
        (e.launch(kernel, [1, 1, 1], 32, 228 * 1024, &arguments), "dynamic shared memory"),
        (e.launch(kernel, [1, 1, 1], 32, 0, &x.address), "the argument has 8 bytes"),
    ];
    for (done, words) in cases {
        assert!(done.as_ref().is_err_and(|said| said.contains(words)), "{words}: {done:?}");
    }
}
