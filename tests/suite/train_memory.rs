//! What a run plans to need of memory, and that it keeps to it.

use crate::support::counted::Counted;
use crate::support::run::{Bench, adapter, log};
use vlm::base::Precision;
use vlm::device::Device;
use vlm::train::roof::Roof;
use vlm::train::run_folder::Start;
use vlm::train::session::{End, Watch, dry_run};

#[test]
fn a_budget_is_kept_by_computing_twice_and_refused_with_a_table() {
    let bench = Bench::new();
    let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
    let plan_under = |memory: Option<u64>, roof: Roof| {
        let settings = bench.settings(|s| (s.lora_vision, s.memory) = (true, memory));
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        dry_run(&settings, &mut Device::host(), Precision::F32, Some(roof), &mut watch)
    };
    let plan = |memory| plan_under(memory, roof);
    let whole = plan(None).unwrap();
    assert_eq!((whole.recompute_level, whole.steps, whole.samples, whole.largest_samples), (0, 6, 3, 2));
    assert_eq!(whole.step_bytes, whole.step_bytes_without_recompute);
    // every sample three times
    assert!(whole.tokens.is_multiple_of(3) && whole.tokens > 0);
    assert!(whole.seconds.unwrap() >= whole.flops / 1e9 && whole.flops > 0.0);
    // an operation takes a second: more than 20 of them in each of 6 steps of a model of 2 layers
    let slow = plan_under(None, Roof { seconds_per_operation: 1.0, ..roof }).unwrap();
    let operations = slow.seconds.unwrap() - whole.seconds.unwrap();
    assert!(operations > 120.0 && (operations - operations.round()).abs() < 1e-6, "{operations}");
    let least = whole.trained_bytes + whole.step_bytes_at_least.max(whole.tower_bytes);
    let tight = plan(Some(least as u64)).unwrap();
    assert!(tight.recompute_level > 0 && tight.bytes() <= least && tight.flops > whole.flops);
    let said = plan(Some(least as u64 - 1)).unwrap_err().to_string();
    for wanted in [
        format!("--memory {}: this run needs more", least - 1),
        format!("{}  what is trained", whole.trained_bytes),
        format!(
            "it would fit with --memory {least}, or --batch-size 1 --grad-accumulation 2, or a smaller --max-pixels"
        ),
    ] {
        assert!(said.contains(&wanted), "{said}\nwanted {wanted}");
    }
    // the run itself refuses before it makes anything, and keeps to a budget to the same bits
    let settings =
        |out: &str, memory| bench.settings(|s| (s.lora_vision, s.memory, s.out) = (true, memory, bench.path(out)));
    let said = bench.refusal(&settings("none", Some(least as u64 - 1)));
    assert!(said.contains("this run needs more") && !bench.path("none").exists(), "{said}");
    let (free, kept) = (settings("free", None), settings("kept", Some(least as u64)));
    bench.run(&free, Start::New, None).unwrap();
    bench.run(&kept, Start::New, None).unwrap();
    assert!(adapter(&free.out) == adapter(&kept.out));
    assert_eq!(log(&free.out), log(&kept.out));
}

/// A plan costs what an epoch costs, and adds up the same.
#[test]
fn a_run_of_any_length_is_planned_at_once() {
    let bench = Bench::new();
    let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
    let plan = |vision: bool, epochs: u64| {
        let settings = bench.settings(|s| (s.lora_vision, s.epochs) = (vision, Some(epochs)));
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        dry_run(&settings, &mut Device::host(), Precision::F32, Some(roof), &mut watch).unwrap()
    };
    for vision in [false, true] {
        let (once, long, endless) = (plan(vision, 1), plan(vision, 60_000), plan(vision, u64::MAX / 2));
        assert_eq!((once.steps, long.steps, endless.steps), (2, 120_000, u64::MAX - 1));
        assert_eq!((long.tokens, endless.tokens), (60_000 * once.tokens, u64::MAX));
        assert_eq!((once.prepared, long.prepared), (3, if vision { 180_000 } else { 3 }));
        // two of three samples make the largest batch, whichever come together in one epoch
        assert!(long.step_bytes >= once.step_bytes && long.largest_samples == 2, "{long:?}");
        assert_eq!(long.step_bytes, endless.step_bytes);
        // a frozen tower works in the first epoch alone
        let (one, many) = (once.flops, long.flops / 60_000.0);
        assert!(many < 1.5 * one && (many > 0.5 * one || !vision), "{one} {many}");
    }
}

/// Where the device is timed, so is the reading of photos.
#[test]
fn what_reading_photos_takes_is_part_of_the_seconds() {
    let bench = Bench::new();
    let plan = |epochs, stated| {
        let settings = bench.settings(|s| (s.lora_vision, s.epochs) = (true, Some(epochs)));
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        dry_run(&settings, &mut Device::host(), Precision::F32, stated, &mut watch).unwrap()
    };
    let timed = plan(3, None);
    assert_eq!(timed.prepared, 9);
    let (all, reading) = (timed.seconds.unwrap(), timed.preparing_seconds.unwrap());
    assert!(reading > 0.0 && reading < all, "{reading} of {all}");
    let mut stated = plan(3, Some(Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 }));
    assert_eq!(stated.preparing_seconds, None);
    let seconds = stated.seconds.unwrap();
    // a device of its own waits for photos only where they take longer
    stated.add_preparing(seconds / 18.0, false);
    assert_eq!(stated.seconds, Some(seconds));
    stated.add_preparing(seconds / 4.5, false);
    assert!((stated.seconds.unwrap() / seconds - 2.0).abs() < 1e-9);
}

/// A device with kernels holds the weights, a copy of what is trained, and intermediate results: a plan counts them.
#[test]
fn what_only_a_device_with_kernels_holds_is_planned() {
    let bench = Bench::new();
    let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
    let plan = |memory, device: &mut Device, precision| {
        let settings = bench.settings(|s| s.memory = memory);
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        dry_run(&settings, device, precision, Some(roof), &mut watch)
    };
    let host = plan(None, &mut Device::host(), Precision::Bf16).unwrap();
    assert_eq!((host.weight_bytes, host.scratch_bytes), (0, 0));
    let emulated = || Device::emulated((9, 0)).expect("an emulator");
    let there = plan(None, &mut emulated(), Precision::Bf16).unwrap();
    // values, gradients and two moments of 4 bytes each, and what rounding up to 256 bytes adds; the copy has 2 a number
    let numbers = (there.trained_bytes - host.trained_bytes) / 2;
    assert!((numbers..numbers + 80).contains(&(host.trained_bytes / 16)) && numbers > 100, "{host:?}");
    assert!(there.weight_bytes > 0 && there.scratch_bytes > 0, "{there:?}");
    let all = there.weight_bytes + there.trained_bytes + there.scratch_bytes + there.features_bytes;
    assert_eq!(there.bytes(), all + there.step_bytes.max(there.tower_bytes));
    let said = plan(Some(1), &mut emulated(), Precision::Bf16).unwrap_err().to_string();
    assert!(said.contains(&format!("{}  intermediate results of one operation", there.scratch_bytes)), "{said}");
}

/// With a budget too small for the features of all samples, the tower runs again, to the same bits.
#[test]
fn features_that_do_not_fit_are_computed_again() {
    let bench = Bench::new();
    let plan = |memory: Option<u64>| {
        let settings = bench.settings(|s| s.memory = memory);
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
        dry_run(&settings, &mut Device::host(), Precision::F32, Some(roof), &mut watch).unwrap()
    };
    let whole = plan(None);
    assert_eq!(whole.features_kept, 3);
    let least = whole.trained_bytes + whole.step_bytes_at_least.max(whole.tower_bytes);
    assert!(whole.features_bytes_at_least < whole.features_bytes);
    let memory = (least + whole.features_bytes_at_least) as u64;
    let some = plan(Some(memory));
    assert!(some.features_kept < 3 && some.bytes() as u64 <= memory && some.flops > whole.flops);
    let free = bench.settings(|s| s.out = bench.path("free"));
    let tight = bench.settings(|s| (s.out, s.memory) = (bench.path("tight"), Some(memory)));
    bench.run(&free, Start::New, None).unwrap();
    bench.run(&tight, Start::New, None).unwrap();
    assert!(adapter(&free.out) == adapter(&tight.out));
}

/// The least budget of a device with kernels is enough, and all of it is needed: the plan counts intermediate results as the
/// operations ask for them.
#[test]
fn the_least_budget_of_a_device_with_kernels_holds_intermediate_results() {
    for capability in [(9, 0), (8, 0)] {
        let bench = Bench::new();
        let settings = |memory| {
            bench.settings(|s| {
                (s.memory, s.out) = (memory, bench.path("run"));
                (s.lora_vision, s.epochs, s.max_steps) = (true, None, Some(1));
            })
        };
        let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        let mut device = Device::emulated(capability).expect("an emulator");
        let plan = dry_run(&settings(None), &mut device, Precision::Bf16, Some(roof), &mut watch).unwrap();
        let least = plan.fixed() + plan.step_bytes_at_least.max(plan.tower_bytes);
        let run = |memory: usize| {
            let counted = Counted::open(capability);
            let device = Device::of(counted.clone()).unwrap();
            let done = bench.run_on(device, Precision::Bf16, &settings(Some(memory as u64)), Start::New, None);
            (done.map_err(|e| e.to_string()), counted.most())
        };
        for short in [1, plan.scratch_bytes] {
            let (done, most) = run(least - short);
            let said = done.expect_err("a refusal");
            let scratch = format!("{}  intermediate results of one operation", plan.scratch_bytes);
            assert!(said.contains("needs more bytes than that") && said.contains(&scratch), "{said}");
            assert!(said.contains(&format!("it would fit with --memory {least}")), "{said}");
            assert!(most == 0 && !bench.path("run").exists(), "refused before anything was made");
        }
        let (done, most) = run(least);
        assert!(matches!(done, Ok(End::Done { steps: 1, .. })), "{done:?}");
        assert!(least - plan.scratch_bytes < most && most <= least, "{most} of {least}: {plan:?}");
    }
}
