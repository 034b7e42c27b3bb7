//! `--device cuda` on a machine without a GPU: the driver of `tests/driver` stands in for NVIDIA's, does what streams are
//! given as late as it may, and writes down what it refuses.

use crate::golden_cases::cases;
use crate::support::run::{adapter, log};
use crate::support::{json_lines, program};
use cudarc::driver::{CudaContext, result, sys};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vlm::device::cuda::Cuda;
use vlm::device::launcher::{MapType, Swizzle, TensorMapShape};
use vlm::device::probe::built;
use vlm::device::{Launch, Launcher, emulated};

/// The folder of the driver's `libcuda.so`, which cargo builds with the tests.
fn library() -> PathBuf {
    let tests = std::env::current_exe().expect("a path");
    let folder = tests.ancestors().nth(2).expect("a build folder").join("examples");
    assert!(folder.join("libcuda.so").exists(), "cargo build --example cuda makes {}", folder.display());
    folder
}

/// Whether there is all that it takes; says what is missing.
fn can_run() -> bool {
    let built = built();
    let all = built.sm_80 && built.sm_90a && built.ptx && !emulated::builds().is_empty();
    if !all {
        println!("skipped: --device cuda on a driver for tests: this build lacks kernels or the emulator");
    }
    all
}

/// A driver of these settings, and a folder for what runs on it.
struct Machine {
    settings: String,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(settings: &str) -> Machine {
        Machine { settings: settings.into(), dir: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has a program find this driver and no other.
    fn lend(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let settings = format!("{},report={}", self.settings, self.path("report").display());
        command.env("LD_LIBRARY_PATH", library()).env("VLM_TEST_DRIVER", settings);
        command
    }

    /// `vlm LINE` on this driver.
    fn program(&self, line: &str) -> Command {
        let mut command = self.lend(&program());
        command.args(line.split_whitespace());
        command
    }

    fn vlm(&self, line: &str) -> Output {
        self.program(line).output().expect("the program")
    }

    #[track_caller]
    fn works(&self, line: &str) -> String {
        let done = self.vlm(line);
        assert!(done.status.success(), "{line}\n{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text")
    }

    /// Expects a failure, and gives the sentence that comes after what was said before.
    #[track_caller]
    fn fails(&self, line: &str) -> String {
        let done = self.vlm(line);
        let said = String::from_utf8(done.stderr).expect("text");
        assert_eq!(done.status.code(), Some(1), "{line}\n{said}");
        let said = said.lines().rfind(|l| l.starts_with("vlm: ")).unwrap_or_else(|| panic!("{line}\n{said}"));
        said.to_string()
    }

    /// What the driver wrote down.
    fn report(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("report")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    /// Expects that nothing was refused and everything given back; how many graphs were launched.
    #[track_caller]
    fn is_content(&self) -> u64 {
        let report = self.report();
        assert!(!report.is_empty() && report.iter().all(|l| l.ends_with("; left: nothing")), "{report:#?}");
        let graphs = |l: &String| l.split(", ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
        report.iter().filter_map(graphs).sum()
    }

    /// As [`Machine::is_content`]; how many kernels were launched.
    #[track_caller]
    fn launches(&self) -> u64 {
        self.is_content();
        let launches = |l: &String| l.strip_prefix("released: ")?.split(' ').next()?.parse::<u64>().ok();
        self.report().iter().filter_map(launches).sum()
    }

    /// Runs a test of this binary again, alone, on this driver, and no kernel on the emulated device beside it.
    #[track_caller]
    fn again(&self, test: &[&str]) {
        let done = self
            .lend(&std::env::current_exe().expect("a path"))
            .args(test)
            .env("VLM_EMULATOR_SEEDS", "0")
            .output()
            .expect("the tests");
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(
            done.status.success() && !said.contains(" 0 passed"),
            "{said}{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

fn model() -> String {
    cases().join("single").display().to_string()
}

/// A training run of six steps into `out`, three checkpoints.
fn training(device: &str, out: &Path) -> String {
    let data = cases().join("train.jsonl");
    format!(
        "train --model {} --data {} --out {} --device {device} --precision bf16 --rank 2 --epochs 4 --batch-size 2 \
         --save-every 2 --dropout 0.1 --seed 5",
        model(),
        data.display(),
        out.display()
    )
}

/// Answers and trained adapters are the emulator's to the bit, whenever a stream does what it was given: the graphs, the
/// staging and the waits of the launcher leave no gap. On a Hopper, on what came before it and on what came after.
#[test]
fn a_driver_changes_no_bit() {
    if !can_run() {
        return;
    }
    for (settings, capability) in
        [("", "9.0"), ("when=soon", "9.0"), ("capability=8.6", "8.6"), ("capability=12.0", "12.0")]
    {
        let machine = Machine::new(settings);
        let messages = cases().join("turns.json").display().to_string();
        let run = |device: &str| {
            let out = machine.path(device);
            let line = format!(
                "generate --model {} --messages {messages} --device {device} --precision bf16 --max-new-tokens 9 --json",
                model()
            );
            let mut program = machine.program(&line);
            let done = program.env("VLM_EMULATED_CAPABILITY", capability).output().expect("the program");
            assert!(done.status.success(), "{line}\n{}", String::from_utf8_lossy(&done.stderr));
            let answer: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
            let mut program = machine.program(&training(device, &out));
            let done = program.env("VLM_EMULATED_CAPABILITY", capability).output().expect("the program");
            assert!(done.status.success(), "{settings}\n{}", String::from_utf8_lossy(&done.stderr));
            assert_eq!(json_lines(&out.join("metrics.jsonl")).len(), 8, "{settings}");
            ((answer["text"].clone(), answer["token_ids"].clone()), log(&out), adapter(&out))
        };
        let (cuda, emulated) = (run("cuda"), run("emulated"));
        assert!(cuda.0.1.is_array() && cuda.0 == emulated.0, "{settings}: {:?} and {:?}", cuda.0, emulated.0);
        assert_eq!(cuda.1, emulated.1, "{settings}");
        assert!(cuda.2 == emulated.2, "{settings}: the adapters differ");
        assert!(machine.is_content() > 4, "{settings}: decoding replays graphs");
    }
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
    if !can_run() {
        return;
    }
    let line = format!("generate --model {} --prompt hail --device cuda", model());
    for (settings, words) in [
        ("init=999", &["the CUDA driver is installed but fails", "CUDA_ERROR_UNKNOWN"][..]),
        ("gpus=0", &["the driver finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        ("capability=7.5", &["test driver sm_75 has compute capability 7.5", "8.0 or newer"]),
        ("version=12080", &["the driver serves CUDA 12.8", "driver 580 or newer"]),
        ("memory=100000", &["the Cache arena needs", "100000 of 100000 are free", "a shorter prompt"]),
        ("memory=300000", &["out of memory on test driver sm_90", "are free"]),
    ] {
        let machine = Machine::new(settings);
        let said = machine.fails(&line);
        assert!(words.iter().all(|w| said.contains(w)), "{settings}: {said}");
        // but for memory, another device is found without being asked for
        if !settings.starts_with("memory") {
            assert!(said.ends_with("or use --device cpu"), "{settings}: {said}");
            machine.works(&line.replace("--device cuda", "--device auto --max-new-tokens 2"));
        }
    }
}

/// A GPU newer than the machine code: its driver compiles the kernels, or is too old to.
#[test]
fn a_driver_that_compiles_is_waited_for() {
    if !can_run() {
        return;
    }
    let line = format!("generate --model {} --prompt hail --device cuda --max-new-tokens 2", model());
    let waits = "vlm: the driver compiles the kernels for test driver sm_120, which takes a while the first time";
    for (settings, waited_for) in [("capability=12.0", true), ("ptx=8.0", false), ("ptx=8.0,capability=8.6", false)] {
        let done = Machine::new(settings).vlm(&line);
        let said = String::from_utf8(done.stderr).expect("text");
        assert!(done.status.success() && said.contains(waits) == waited_for, "{settings}: {said}");
    }
    let said = Machine::new("capability=12.0,ptx=8.0").fails(&line);
    for words in ["the driver is older than the CUDA of the kernels", "install-nvcc", "UNSUPPORTED_PTX_VERSION"] {
        assert!(said.contains(words), "{said}");
    }
}

/// What an older driver answers to machine code that it does not know is told as that; what may have any other cause is not.
#[test]
fn a_driver_that_may_be_too_old_for_the_machine_code_is_said_to_be() {
    if !can_run() {
        return;
    }
    let line = format!("generate --model {} --prompt hail --device cuda --max-new-tokens 2", model());
    let may_be =
        "for which it may be too old (the driver serves CUDA 13.0, and the kernels are of CUDA 13): install a newer";
    for (code, name, told) in [
        (200, "INVALID_IMAGE", true),
        (209, "NO_BINARY_FOR_GPU", true),
        (222, "UNSUPPORTED_PTX_VERSION", true),
        (300, "INVALID_SOURCE", true),
        (2, "OUT_OF_MEMORY", false),
    ] {
        for capability in ["9.0", "8.6"] {
            let said = Machine::new(&format!("cubin={code},capability={capability}")).fails(&line);
            assert!(said.contains(name) && said.contains(may_be) == told, "{code} on {capability}: {said}");
            assert!(told || said.contains("cannot load the kernels of "), "{code} on {capability}: {said}");
        }
    }
    // PTX goes its own way
    Machine::new("cubin=200,capability=12.0").works(&line);
}

/// The kernels that tests alone launch are loaded for none but them.
#[test]
fn a_run_loads_no_conformance() {
    if !can_run() {
        return;
    }
    let line = format!("generate --model {} --prompt hail --device cuda --max-new-tokens 2", model());
    let done = Machine::new("").program(&line).env("VLM_LOG", "vlm=debug").output().expect("the program");
    let said = String::from_utf8(done.stderr).expect("text");
    let loaded: Vec<&str> = said.lines().filter(|l| l.contains("kernels are loaded: ")).collect();
    assert!(done.status.success() && loaded.len() == 1, "{said}");
    assert!(loaded[0].contains(" linear_sm90") && !loaded[0].contains("conformance"), "{said}");
}

/// A trial that found too little memory is tried again when the sweep goes on: others may have had it.
#[test]
fn a_sweep_tries_again_what_found_no_memory() {
    if !can_run() {
        return;
    }
    let machine = Machine::new("");
    let config = machine.path("sweep.toml");
    let text = fs::read_to_string(cases().join("sweep.toml")).expect("a sweep");
    let path = |name: &str| format!("{:?}", cases().join(name).display().to_string());
    let text = ["uneven", "train.jsonl", "validation.jsonl"]
        .iter()
        .fold(text, |text, name| text.replace(&format!("\"{name}\""), &path(name)));
    fs::write(&config, text.replace("[vary]", "device = \"cuda\"\nprecision = \"bf16\"\n[vary]")).expect("a file");
    let line = format!("sweep --config {} --out {}", config.display(), machine.path("sweep").display());
    let said = Machine::new("memory=600000").fails(&line);
    assert!(
        said.contains("every trial failed; trial 1: ") && said.contains("the device has room for 588000"),
        "{said}"
    );
    let trial = || fs::read_to_string(machine.path("sweep/trial-001/trial.json")).expect("a result");
    assert!(trial().contains("\"failed\""), "{}", trial());
    let board = machine.works(&line);
    assert!(board.contains("best: ") && !trial().contains("failed"), "{board}\n{}", trial());
    assert!(machine.launches() > 100);
}

/// A kernel fails in the middle of a run: a sentence, the checkpoint before it is whole, and the run that goes on from there
/// ends with the bits of one that was never disturbed.
#[test]
fn a_gpu_that_fails_loses_nothing_that_was_saved() {
    if !can_run() {
        return;
    }
    let whole = Machine::new("");
    whole.works(&training("cuda", &whole.path("run")));
    let launches = whole.launches();
    let small = Machine::new("memory=600000");
    let said = small.fails(&training("cuda", &small.path("run")));
    assert!(said.contains("the device has room for 588000 bytes") && !small.path("run").exists(), "{said}");
    let broken = Machine::new(&format!("fail={}", launches * 3 / 4));
    let line = training("cuda", &broken.path("run"));
    let said = broken.fails(&line);
    assert!(said.contains("CUDA_ERROR_LAUNCH_FAILED") && said.contains("VLM_SYNC_LAUNCHES=1 names it"), "{said}");
    // the next call of any kind is told, be it the first look for a kernel, its launch or an allocation
    let line_of_answer = format!("generate --model {} --prompt hail --device cuda", model());
    for fail in [1, 2, 3, 5, 8, 13, 21] {
        let said = Machine::new(&format!("when=soon,fail={fail}")).fails(&line_of_answer);
        assert!(said.contains("a kernel or a copy failed (VLM_SYNC_LAUNCHES=1 names it)"), "{fail}: {said}");
        assert!(said.contains("CUDA_ERROR_LAUNCH_FAILED") && !said.contains("memory"), "{fail}: {said}");
    }
    fs::remove_dir_all(broken.path("run")).expect("a run");
    let done = broken.program(&line).env("VLM_SYNC_LAUNCHES", "1").output().expect("the program");
    let said = String::from_utf8(done.stderr).expect("text");
    assert!(said.contains("kernel ") && said.contains("_bf16"), "{said}");
    Machine::new("").works(&format!("{line} --resume"));
    assert!(adapter(&broken.path("run")) == adapter(&whole.path("run")), "the adapters differ");
    assert_eq!(log(&broken.path("run")), log(&whole.path("run")));
}

/// Whatever memory there is, a run is refused before it begins or has room for all that it does: steps, the evaluation of
/// its validation set, the answers of an overfit check.
#[test]
fn a_run_that_begins_has_room_until_its_end() {
    if !can_run() {
        return;
    }
    let set = cases().join("validation.jsonl");
    for judged in [format!("--eval-data {} --eval-every 1", set.display()), "--overfit 2".into()] {
        let mut began = [0, 0];
        for memory in (500_000..1_700_000).step_by(60_000) {
            let machine = Machine::new(&format!("memory={memory}"));
            let line = training("cuda", &machine.path("run")).replace("--epochs 4", "--max-steps 2");
            let done = machine.program(&format!("{line} {judged}")).output();
            let said = String::from_utf8(done.expect("the program").stderr).expect("text");
            let (refused, out) = (said.contains("this run needs more bytes"), said.contains("OUT_OF_MEMORY"));
            assert!(!out && refused != machine.path("run").exists(), "{judged}, {memory} bytes: {said}");
            began[usize::from(!refused)] += 1;
        }
        assert!(began.iter().all(|n| *n > 2), "{judged}: {began:?}");
    }
}

/// Every test of a kernel, and every primitive: where they find a GPU they compare it too.
#[test]
fn kernels_agree_through_a_driver() {
    if !can_run() {
        return;
    }
    // where every kernel runs, which the emulated devices answer alone, need not be asked again
    let kernels = &["kernel_", "--skip", "every_kernel_runs"][..];
    for (tests, launches) in [(kernels, 10_000), (&["emulator_conformance::a_gpu_agrees_with_the_emulator"], 100)] {
        let machine = Machine::new("");
        machine.again(tests);
        assert!(machine.launches() > launches, "{tests:?}: {} launches", machine.launches());
    }
}

/// What the program leaves to a real driver is refused by this one too, and what it must wait for does not happen before.
#[test]
fn the_driver_is_strict() {
    if !can_run() {
        return;
    }
    if std::env::var_os("VLM_TEST_DRIVER").is_none() {
        let machine = Machine::new("memory=100000000");
        machine.again(&["--exact", "driver::the_driver_is_strict"]);
        let report = machine.report();
        let wanted = [
            "cuMemcpyHtoDAsync_v2: 4 bytes",
            "are not pinned",
            "of no allocation",
            "cuEventElapsedTime: the stream has not come to the event",
            "cuMemAlloc_v2: cuMemAlloc while a stream is captured",
            "cuStreamEndCapture: the capture has failed",
            "cuCtxSynchronize: a wait for the context while a thread captures a stream",
            "cuMemAlloc_v2: 100000001 bytes",
            "adamw_fwd_f32: 2048 threads a block",
            "attention_fwd_w128_sm90_bf16: 231425 bytes of shared memory beside 1024 of its own, of 232448",
            "adamw_fwd_f32: launched first while a stream is captured",
            "a tensor map with strides of [24] bytes",
            "left: 1 allocations",
        ];
        let missing: Vec<_> = wanted.iter().filter(|w| !report.iter().any(|l| l.contains(**w))).collect();
        return assert!(missing.is_empty(), "{missing:?} in {report:#?}");
    }
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    let s = stream.cu_stream();
    // SAFETY: pointers are to what is named, ranges are inside, but where the driver shall see that they are not.
    unsafe {
        let (device, host) = (result::malloc_sync(64).expect("memory"), result::malloc_host(64, 0).expect("memory"));
        let pinned = std::slice::from_raw_parts_mut(host.cast::<u8>(), 64);
        // the copy reads what lies there when someone waits, and not before
        pinned.fill(1);
        result::memcpy_htod_async(device, pinned, s).expect("a copy");
        pinned.fill(2);
        result::stream::synchronize(s).expect("a wait");
        pinned.fill(0);
        result::memcpy_dtoh_async(pinned, device, s).expect("a copy");
        assert!(pinned.iter().all(|b| *b == 0), "read before anyone waited");
        result::stream::synchronize(s).expect("a wait");
        assert!(pinned.iter().all(|b| *b == 2), "what was there when it was waited for");
        result::memcpy_htod_async(device, &[0u8; 4], s).expect_err("memory that is not pinned");
        result::memset_d8_async(device + 60, 0, 8, s).expect_err("a range past the end");
        let events =
            [(); 2].map(|()| stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).expect("an event"));
        result::event::elapsed(events[0].cu_event(), events[1].cu_event()).expect_err("nobody waited");
        assert!(events[0].elapsed_ms(&events[1]).expect("a time") >= 0.0);
        result::malloc_sync(100_000_001).expect_err("too much");
        let thread_local = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(thread_local).expect("a capture");
        result::malloc_sync(64).expect_err("memory while a stream is captured");
        assert!(stream.end_capture(sys::CUgraphInstantiate_flags(0)).is_err(), "a capture that has failed");
        stream.begin_capture(thread_local).expect("a capture");
        std::thread::scope(|scope| scope.spawn(|| context.synchronize().expect_err("a capture is under way")).join())
            .expect("a thread");
        assert!(stream.end_capture(sys::CUgraphInstantiate_flags(0)).is_err(), "another thread broke it");
        result::free_host(host).expect("pinned memory");
        // 64 bytes stay: the report says so
        let gpu = Cuda::open(0).expect("a GPU");
        let arguments = [0u64; 512];
        let launch = |kernel, block, shared_bytes| {
            let launch = Launch { kernel, grid: [1, 1, 1], block, shared_bytes };
            gpu.launch("test", &launch, arguments.as_ptr().cast(), 0)
        };
        launch("adamw_fwd_f32", 2048, 0).expect_err("too many threads");
        launch("attention_fwd_w128_sm90_bf16", 384, 231_425).expect_err("too much shared memory");
        assert!(gpu.begin_recording().expect("a recording"));
        launch("adamw_fwd_f32", 256, 0).expect_err("a kernel that is not loaded");
        gpu.end_recording().expect("an end");
        let map = TensorMapShape {
            dtype: MapType::Bf16,
            address: device,
            sizes: &[12, 2],
            strides_bytes: &[24],
            box_sizes: &[8, 1],
            swizzle: Swizzle::None,
        };
        assert!(gpu.tensor_map(&map).is_err(), "rows of 24 bytes");
        // more than the staging memory holds, by and by
        let bytes: Vec<u8> = (0..70_000_001u32).map(|i| (i % 251) as u8).collect();
        let (at, mut back) = (gpu.allocate(bytes.len()).expect("memory"), vec![0; bytes.len()]);
        gpu.write(at, &bytes).expect("a write");
        gpu.write(at + 5, &[7; 3]).expect("a write");
        gpu.read(at, &mut back).expect("a read");
        assert!(back[..5] == bytes[..5] && back[5..8] == [7; 3] && back[8..] == bytes[8..], "other bytes");
        gpu.free(at);
    }
}
