//! Decoding by replays of recorded launches gives the bits of decoding launch by launch; and what has moved, what is not
//! written and what cannot be recorded is not replayed. In the emulator, and on this machine's GPU where it has one.

use crate::batches::text;
use crate::golden_cases::{Opened, cases, greedy};
use crate::support::kernels::has_gpu;
use crate::support::program;
use std::ffi::c_void;
use std::process::Command;
use std::sync::Arc;
use vlm::base::{DType, Precision, Result};
use vlm::device::cuda::Cuda;
use vlm::device::emulated::Emulated;
use vlm::device::launcher::{Mark, TensorMap, TensorMapShape};
use vlm::device::recording::Recorded;
use vlm::device::{Clock, Device, Facts, Launch, Launcher, Layout, Recording};
use vlm::infer::engine::{Answer, Engine, Read};
use vlm::infer::generate::{Settings, generate};
use vlm::ops::embed::Embed;
use vlm::ops::sample::Choice;
use vlm::qwen3vl::model::Rows;
use vlm::qwen3vl::pack::Sequence;
use vlm::tape::{Repeated, Tape};
use vlm::tensor::{Arena, Tensor, Trained, Weight, new_generation};

/// Why a device goes launch by launch.
#[derive(Clone, Copy)]
enum Why {
    /// It records nothing.
    Never,
    /// It waits before each launch, as a word that reads something back would.
    Waits,
}

/// A launcher of which nothing can be recorded.
struct OneByOne(Arc<dyn Launcher>, Why);

impl Launcher for OneByOne {
    fn facts(&self) -> &Facts {
        self.0.facts()
    }
    fn memory_bytes(&self) -> Option<(usize, usize)> {
        self.0.memory_bytes()
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.0.allocate(bytes)
    }
    unsafe fn free(&self, address: u64) {
        // SAFETY: the caller's promise, here and below.
        unsafe { self.0.free(address) }
    }
    unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        unsafe { self.0.write(to, bytes) }
    }
    unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        unsafe { self.0.read(from, bytes) }
    }
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        unsafe { self.0.copy(from, to, bytes) }
    }
    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        unsafe { self.0.fill(to, byte, bytes) }
    }
    fn tensor_map(&self, shape: &TensorMapShape) -> Result<TensorMap> {
        self.0.tensor_map(shape)
    }
    unsafe fn launch(&self, op: &'static str, launch: &Launch, at: *const c_void, bytes: usize) -> Result<()> {
        if let Why::Waits = self.1 {
            self.0.synchronise()?;
        }
        unsafe { self.0.launch(op, launch, at, bytes) }
    }
    fn begin_recording(&self) -> Result<bool> {
        match self.1 {
            Why::Never => Ok(false),
            Why::Waits => self.0.begin_recording(),
        }
    }
    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>> {
        self.0.end_recording()
    }
    fn synchronise(&self) -> Result<()> {
        self.0.synchronise()
    }
    fn mark(&self) -> Result<Mark> {
        self.0.mark()
    }
}

/// Opens one of the launchers to be tested.
type Opens = fn() -> Arc<dyn Launcher>;

fn launchers() -> Vec<Opens> {
    let emulator: Opens = || Emulated::open((9, 0)).expect("an emulator");
    let gpu: Opens = || Cuda::open(0).expect("a GPU");
    std::iter::once(emulator).chain(has_gpu().then_some(gpu)).collect()
}

fn device(opens: Opens) -> Device {
    Device::of(opens()).expect("a device")
}

/// A device that replays, and two that go launch by launch.
fn devices(opens: Opens) -> [Device; 3] {
    let one_by_one = |why| Device::of(Arc::new(OneByOne(opens(), why))).expect("a device");
    [device(opens), one_by_one(Why::Never), one_by_one(Why::Waits)]
}

fn open(device: Device) -> Opened {
    Opened::on(device, &cases().join("single"), None, Precision::Bf16)
}

/// How many steps after the prompts run again what the one before them ran: as many sequences as there.
fn repeated(answers: &[Vec<u32>]) -> u64 {
    let running = |step: usize| answers.iter().filter(|a| a.len() > step).count();
    (2..).take_while(|step| running(*step) > 0).filter(|step| running(*step) == running(*step - 1)).count() as u64
}

/// Greedy and drawn, alone and side by side, where one ends early; one generation after another on the same device.
#[test]
fn answers_are_those_of_launch_by_launch() {
    launchers().into_iter().for_each(answers);
}

fn answers(opens: Opens) {
    let drawn =
        Choice { temperature: Some(5.0), top_k: 50, repetition_penalty: 1.1, presence_penalty: 0.5, ..Choice::GREEDY };
    let mut seen = Vec::new();
    for (i, device) in devices(opens).into_iter().enumerate() {
        let mut opened = open(device);
        let prompts = [text(5), text(9), text(70)];
        let mut said: Vec<Vec<Vec<u32>>> = Vec::new();
        let mut ask = |prompts: &[&Sequence], settings: &Settings| {
            let engine = &mut opened.engine;
            let before = engine.device.replays();
            let (answers, _) = generate(engine, prompts, settings, &mut |_, _| (), &mut |_, _| true).expect("answers");
            let answers: Vec<Vec<u32>> = answers.into_iter().map(|a| a.tokens).collect();
            let wanted = if i == 0 { repeated(&answers) } else { 0 };
            assert_eq!(engine.device.replays() - before, wanted, "device {i}: {answers:?}");
            said.push(answers.clone());
            answers
        };
        let settings = Settings { n_valid: 435, ..greedy(&open(Device::host()), 6) };
        ask(&[&prompts[0]], &settings);
        for choice in [Choice::GREEDY, drawn] {
            let settings = Settings { choice, ..settings.clone() };
            let all: Vec<&Sequence> = prompts.iter().collect();
            let answers = ask(&all, &settings);
            let stop = vec![answers[1][2]];
            let answers = ask(&all, &Settings { stop, ..settings });
            assert!(answers.iter().any(|a| a.len() <= 3) && repeated(&answers) > 0, "{answers:?}");
        }
        seen.push((said, opened.engine.device.launches()));
    }
    assert!(seen[0] == seen[1] && seen[0] == seen[2], "{:?}", seen.iter().map(|(said, _)| said).collect::<Vec<_>>());
}

/// The bits of logits, token by token: past the room of the first table of blocks, and where scratch memory moves between
/// two steps.
#[test]
fn logits_are_those_of_launch_by_launch_while_memory_moves() {
    launchers().into_iter().for_each(logits);
}

fn logits(opens: Opens) {
    let (prompt, steps) = (text(16 * 64 - 4), 12);
    let mut seen = Vec::new();
    for (i, device) in devices(opens).into_iter().take(2).enumerate() {
        let mut opened = open(device);
        let engine = &mut opened.engine;
        engine.reserve([prompt.ids.len() + steps]).expect("room");
        let (mut cached, _) = engine.prefill(&[&prompt], Read::Logits(Rows::Last), &mut |_, _| ()).expect("a prompt");
        let mut bits: Vec<u32> = Vec::new();
        let mut replays = Vec::new();
        for step in 0..steps {
            if step == 8 {
                let Device::Launch(gpu) = &mut engine.device else { panic!("a device that runs kernels") };
                gpu.scratch::<1>(&[64 << 20]).expect("scratch memory");
            }
            let mut sequences: Vec<_> = cached.iter_mut().collect();
            let answer = engine.extend(&mut sequences, &[&[7 + step as u32]], Read::Logits(Rows::All)).expect("a step");
            let Answer::Logits(rows) = answer else { panic!("logits were asked for") };
            assert!(rows.iter().flatten().all(|l| l.is_finite()));
            bits.extend(rows.iter().flatten().map(|l| l.to_bits()));
            replays.push(engine.device.replays());
        }
        // the 5th token begins a table with more room, and the 9th comes after the move
        let wanted = if i == 0 { vec![0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9] } else { vec![0; steps] };
        assert_eq!(replays, wanted);
        seen.push((bits, engine.device.launches()));
    }
    assert!(seen[0] == seen[1], "logits or launches differ");
}

/// An embedding of 3 ids in a table of 4 rows, which is trained.
struct Looked {
    tape: Tape,
    ids: Tensor,
    y: Tensor,
    table: Tensor,
    parameters: Layout,
}

impl Looked {
    fn new() -> Looked {
        let generation = new_generation();
        let part =
            |slot| Tensor { arena: Arena::Parameters, slot, generation, dtype: DType::F32, shape: [4, 8].into() };
        let parameters = Layout::sequential(generation, [part(0).bytes(), part(1).bytes()]);
        let table = Weight::trained("table", Trained { value: part(0), gradient: part(1) });
        let mut tape = Tape::new(Precision::Bf16);
        let ids = tape.input(DType::I32, [3]);
        let y = tape.activation([3, 8]);
        let y = tape.keep(y);
        tape.push(Embed { ids, table, image: None, precision: Precision::Bf16, y }).expect("an embedding");
        Looked { tape, ids, y, table: part(0), parameters }
    }

    fn begin(&self, device: &mut Device) {
        device.memory().lay_out(Arena::Parameters, self.parameters.clone()).expect("room");
        self.tape.begin(device).expect("room");
        self.fill(device, 1.0);
    }

    /// Row r of the table holds `from` + r.
    fn fill(&self, device: &mut Device, from: f32) {
        let values: Vec<f32> = (0..4 * 8).map(|i| from + (i / 8) as f32).collect();
        device.memory().write_f32(self.table, &values).expect("a table");
    }

    /// The first number of each row that was looked up.
    fn run(&self, device: &mut Device, again: &mut Repeated, ids: [i32; 3]) -> Result<[f32; 3]> {
        device.memory().write_i32(self.ids, &ids)?;
        again.run(device, &mut Clock::default())?;
        let y = device.memory().read_f32(self.y)?;
        Ok([y[0], y[8], y[16]])
    }

    fn again(&self) -> Repeated {
        Repeated::new(self.tape.clone())
    }

    fn record(&self, device: &mut Device) -> Recording {
        self.run(device, &mut self.again(), [0, 0, 0]).expect("a run");
        device.memory().write_i32(self.ids, &[1, 2, 3]).expect("ids");
        let mut run = |device: &mut Device| self.tape.run(device, &mut Clock::default(), &mut |_, _| ());
        device.record(&mut run).expect("no error").expect("a recording")
    }
}

#[test]
fn indices_are_checked_before_every_replay() {
    launchers().into_iter().for_each(indices);
}

fn indices(opens: Opens) {
    let (looked, mut device) = (Looked::new(), device(opens));
    let mut again = looked.again();
    looked.begin(&mut device);
    for round in 0..2 {
        for (ids, wanted) in [([0, 1, 2], [1.0, 2.0, 3.0]), ([3, 3, 0], [4.0, 4.0, 1.0]), ([2, 1, 3], [3.0, 2.0, 4.0])]
        {
            assert_eq!(looked.run(&mut device, &mut again, ids).expect("a run"), wanted);
        }
        assert_eq!(device.replays(), 2 * (round + 1));
        for wrong in [4, -1] {
            let said = looked.run(&mut device, &mut again, [0, wrong, 0]).expect_err("no such row").to_string();
            assert!(said.contains("(record 0): embed: ids: wanted 0 to 4 exclusive"), "{said}");
            if wrong == 4 {
                assert_eq!(device.replays(), 2 * (round + 1), "it would have been a replay");
            }
        }
    }
    // what the run before left where the ids were is no index
    for replayed in [false, true] {
        looked.run(&mut device, &mut again, [0, 1, 2]).expect("a run");
        if replayed {
            looked.run(&mut device, &mut again, [0, 1, 2]).expect("a run");
        }
        let said = again.run(&mut device, &mut Clock::default()).expect_err("no ids").to_string();
        assert!(said.contains("whole numbers that were written"), "{said}");
    }
}

/// A weight that was written between two runs is rounded again before it is read.
#[test]
fn a_master_that_changes_is_read_anew() {
    launchers().into_iter().for_each(masters);
}

fn masters(opens: Opens) {
    let (looked, mut device) = (Looked::new(), device(opens));
    let mut again = looked.again();
    looked.begin(&mut device);
    for (run, replays) in [0, 1, 2, 2, 3, 4].into_iter().enumerate() {
        if run == 3 {
            looked.fill(&mut device, 10.0);
        }
        let from = if run < 3 { 1.0 } else { 10.0 };
        let got = looked.run(&mut device, &mut again, [0, 1, 3]).expect("a run");
        assert_eq!((got, device.replays()), ([from, from + 1.0, from + 3.0], replays), "run {run}");
    }
}

#[test]
fn what_has_moved_is_not_replayed() {
    launchers().into_iter().for_each(moves);
}

fn moves(opens: Opens) {
    type Move = fn(&Looked, &mut Device, Opens);
    let moves: [(&str, Move); 5] = [
        ("activations", |looked, device, _| {
            device.memory().lay_out(Arena::Activations, looked.tape.plan()).expect("room")
        }),
        ("cache", |_, device, _| device.memory().lay_out(Arena::Cache, Layout::default()).expect("room")),
        ("masters", |looked, device, _| looked.fill(device, 5.0)),
        ("scratch", |_, device, _| {
            let Device::Launch(gpu) = device else { panic!("a device that runs kernels") };
            gpu.scratch::<1>(&[1 << 20]).expect("scratch memory");
        }),
        ("device", |_, to, opens| *to = device(opens)),
    ];
    for (name, moved) in moves {
        let (looked, mut device) = (Looked::new(), device(opens));
        looked.begin(&mut device);
        let recording = looked.record(&mut device);
        assert_eq!(device.memory().read_f32(looked.y).expect("y")[8], 1.0, "{name}: recorded launches did not happen");
        // SAFETY: the ids were checked when they were recorded.
        unsafe { device.replay(&recording).expect("a replay") }
        assert_eq!(device.memory().read_f32(looked.y).expect("y")[8], 3.0, "{name}: they happen when replayed");
        assert!(device.is_current(&recording));
        moved(&looked, &mut device, opens);
        assert!(!device.is_current(&recording), "{name}");
        // SAFETY: it is refused.
        let said = unsafe { device.replay(&recording) }.expect_err("a stale recording").to_string();
        assert!(said.contains("replay: recording: wanted one of stamp"), "{name}: {said}");
    }
}

/// Each fails where launches are recorded, and nothing that comes after it happens: there is no recording then, and the device
/// is as it was.
#[test]
fn what_cannot_be_recorded_is_not() {
    launchers().into_iter().for_each(records);
}

fn records(opens: Opens) {
    type Does = fn(&Looked, &mut Device) -> Result<()>;
    let all: [(&str, Does); 3] = [
        ("bytes for the host", |looked, device| device.memory().read_f32(looked.y).map(|_| ())),
        ("bytes from the host", |looked, device| device.memory().write_f32(looked.y, &[0.0; 24])),
        ("an allocation", |_, device| {
            let Device::Launch(gpu) = device else { panic!("a device that runs kernels") };
            gpu.scratch::<1>(&[1 << 20]).map(|_| ())
        }),
    ];
    for (name, does) in all {
        let (looked, mut device) = (Looked::new(), device(opens));
        looked.begin(&mut device);
        let first = looked.run(&mut device, &mut looked.again(), [0, 1, 2]).expect("a run");
        device.memory().write_i32(looked.ids, &[3, 3, 3]).expect("ids");
        let launches = device.launches();
        let mut said = Vec::new();
        let recorded = device.record(&mut |device| {
            said.push(does(&looked, device).expect_err("no recording").to_string());
            looked.tape.run(device, &mut Clock::default(), &mut |_, _| ()).inspect_err(|e| said.push(e.to_string()))
        });
        assert!(recorded.expect("no error").is_none(), "{name}");
        assert!(said.len() == 2 && said[0].contains(name) && said[1].contains("after that"), "{said:?}");
        assert!(device.memory().read_f32(looked.y).expect("y").iter().step_by(8).eq(&first), "{name}");
        assert_eq!(device.launches(), launches, "{name}");
        // the table changed, and the launch that was to round it anew did not happen
        looked.fill(&mut device, 11.0);
        device.memory().write_i32(looked.ids, &[3, 3, 3]).expect("ids");
        let recorded = device.record(&mut |device| {
            looked.tape.run(device, &mut Clock::default(), &mut |_, _| ())?;
            does(&looked, device)
        });
        assert!(recorded.expect("no error").is_none(), "{name}");
        assert_eq!(looked.run(&mut device, &mut looked.again(), [3, 0, 1]).expect("a run"), [14.0, 11.0, 12.0]);
        looked.fill(&mut device, 1.0);
        assert_eq!(looked.run(&mut device, &mut looked.again(), [3, 0, 1]).expect("a run"), [4.0, 1.0, 2.0]);
    }
    // an error of the run itself is what is said
    let (looked, mut device) = (Looked::new(), device(opens));
    looked.begin(&mut device);
    device.memory().write_i32(looked.ids, &[0, 9, 0]).expect("ids");
    let recorded = device.record(&mut |device| looked.tape.run(device, &mut Clock::default(), &mut |_, _| ()));
    let said = recorded.err().expect("no such row").to_string();
    assert!(said.contains("embed: ids"), "{said}");
    assert_eq!(looked.run(&mut device, &mut looked.again(), [3, 0, 1]).expect("a run"), [4.0, 1.0, 2.0]);
}

/// A device that another thread opens, uses and gives back meanwhile disturbs no recording, and is not disturbed.
#[test]
fn devices_are_opened_while_one_records() {
    launchers().into_iter().for_each(opened_beside);
}

fn opened_beside(opens: Opens) {
    let (looked, mut one) = (Looked::new(), device(opens));
    looked.begin(&mut one);
    looked.run(&mut one, &mut looked.again(), [0, 0, 0]).expect("a run");
    one.memory().write_i32(looked.ids, &[1, 2, 3]).expect("ids");
    let recorded = one.record(&mut |one| {
        let beside = || {
            let (looked, mut other) = (Looked::new(), device(opens));
            looked.begin(&mut other);
            looked.run(&mut other, &mut looked.again(), [3, 1, 0]).expect("a run")
        };
        let got = std::thread::scope(|scope| scope.spawn(beside).join()).expect("another device");
        assert_eq!(got, [4.0, 2.0, 1.0]);
        looked.tape.run(one, &mut Clock::default(), &mut |_, _| ())
    });
    let recording = recorded.expect("no error").expect("a recording");
    // SAFETY: the ids were checked when they were recorded.
    unsafe { one.replay(&recording).expect("a replay") }
    assert_eq!(one.memory().read_f32(looked.y).expect("y")[8], 3.0);
}

/// `--json` says how often launches were replayed, and counts each of them; `VLM_REPLAY=0` goes without.
#[test]
fn the_program_says_how_often() {
    let ask = |replay: &str| {
        let model = cases().join("single");
        let done = Command::new(program())
            .args([
                "generate",
                "--device",
                "emulated",
                "--max-new-tokens",
                "6",
                "--json",
                "--prompt",
                "Hello",
                "--model",
            ])
            .arg(model)
            .env("VLM_REPLAY", replay)
            .output()
            .expect("the program");
        let said: serde_json::Value = serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&done.stderr)));
        (said["token_ids"].clone(), said["device"]["kernels"].clone(), said["device"]["replays"].as_u64())
    };
    let (with, without) = (ask("1"), ask("0"));
    assert_eq!((&with.0, &with.1), (&without.0, &without.1));
    let steps = with.0.as_array().expect("tokens").len() as u64 - 1;
    assert_eq!((with.2, without.2), (Some(steps - 1), Some(0)));
}

/// The engine can still be given to another thread.
#[test]
fn an_engine_goes_to_another_thread() {
    fn sent<T: Send>() {}
    sent::<Engine>();
}
