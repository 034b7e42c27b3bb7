//! Streams, what they were given to do, captures, graphs and events.

use crate::device::Driver;
use crate::settings::When;
use crate::{Done, Handle, refused};
use cudarc::driver::sys::CUresult;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;
use vlm::device::launcher::ArgumentCopy;
use vlm::device::{Launch, Launcher};

/// Something that a stream was given to do. Ranges were checked when it was.
#[derive(Clone)]
pub enum Work {
    Launch { launch: Launch, arguments: ArgumentCopy },
    ToDevice { from: usize, to: u64, bytes: usize },
    ToHost { from: u64, to: usize, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
    Fill { to: u64, byte: u8, bytes: usize },
    Record(Handle),
    Graph(Arc<Vec<Work>>),
}

struct Stream {
    waiting: VecDeque<Work>,
    capture: Option<Capture>,
}

/// What a stream is given from the beginning of a capture to its end.
struct Capture {
    thread: ThreadId,
    /// None once something came that no graph can hold.
    noted: Option<Vec<Work>>,
}

enum Event {
    /// Its stream has not come to it, or it was never recorded.
    Ahead {
        recorded: bool,
    },
    At(Instant),
}

#[derive(Default)]
pub struct Streams {
    streams: BTreeMap<Handle, Stream>,
    events: BTreeMap<Handle, (Event, bool)>,
    graphs: BTreeMap<Handle, Arc<Vec<Work>>>,
    executables: BTreeMap<Handle, Arc<Vec<Work>>>,
    launches: u64,
    graph_launches: u64,
    waits: u64,
}

impl Streams {
    pub fn left(&self) -> String {
        let counts = [
            (self.streams.len(), "streams"),
            (self.events.len(), "events"),
            (self.graphs.len(), "graphs"),
            (self.executables.len(), "executable graphs"),
        ];
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what} ")).collect()
    }

    /// For the report.
    pub fn did(&self) -> String {
        format!("{} launches, {} graph launches, {} waits", self.launches, self.graph_launches, self.waits)
    }

    /// Whether the calling thread captures a stream.
    pub fn capturing(&self) -> bool {
        let thread = std::thread::current().id();
        self.streams.values().any(|s| s.capture.as_ref().is_some_and(|c| c.thread == thread))
    }

    /// What a thread must not do while it captures: the capture has failed then.
    pub fn forbid_in_capture(&mut self, what: &str) -> Done<()> {
        let thread = std::thread::current().id();
        let mut captures = self.streams.values_mut().filter_map(|s| s.capture.as_mut());
        match captures.find(|c| c.thread == thread) {
            None => Ok(()),
            Some(capture) => {
                capture.noted = None;
                refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, format!("{what} while a stream is captured"))
            }
        }
    }

    /// What nobody must do while any thread captures, in whatever mode: every capture has failed then.
    fn forbid_in_any_capture(&mut self, what: &str) -> Done<()> {
        let captures: Vec<_> = self.streams.values_mut().filter_map(|s| s.capture.as_mut()).collect();
        if captures.is_empty() {
            return Ok(());
        }
        captures.into_iter().for_each(|capture| capture.noted = None);
        let said = format!("{what} while a thread captures a stream");
        refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, said)
    }

    fn stream(&mut self, handle: Handle) -> Done<&mut Stream> {
        match self.streams.get_mut(&handle) {
            Some(stream) => Ok(stream),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such stream"),
        }
    }
}

impl Driver {
    pub fn new_stream(&mut self) -> Done<Handle> {
        self.emulator()?;
        self.streams.forbid_in_capture("cuStreamCreate")?;
        let handle = self.handle();
        self.streams.streams.insert(handle, Stream { waiting: VecDeque::new(), capture: None });
        Ok(handle)
    }

    pub fn end_stream(&mut self, stream: Handle) -> Done<()> {
        self.settle(stream)?;
        self.streams.streams.remove(&stream);
        Ok(())
    }

    /// Gives a stream something to do.
    pub fn enqueue(&mut self, stream: Handle, work: Work) -> Done<()> {
        self.emulator()?;
        let when = self.settings.when;
        let at = self.streams.stream(stream)?;
        match &mut at.capture {
            None => at.waiting.push_back(work),
            Some(Capture { noted: None, .. }) => {
                return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture has failed");
            }
            Some(Capture { noted: Some(noted), .. }) => {
                noted.push(work);
                return Ok(());
            }
        }
        match if when == When::Soon { self.settle(stream) } else { Ok(()) } {
            // a kernel fails on the device: whoever calls next is told
            Err(_) if self.lost.is_some() => Ok(()),
            done => done,
        }
    }

    /// Has a stream do all that it was given.
    fn settle(&mut self, stream: Handle) -> Done<()> {
        while let Some(work) = self.streams.stream(stream)?.waiting.pop_front() {
            self.happen(&work)?;
        }
        Ok(())
    }

    pub fn settle_all(&mut self) -> Done<()> {
        let all: Vec<Handle> = self.streams.streams.keys().copied().collect();
        all.into_iter().try_for_each(|stream| self.settle(stream))
    }

    /// Waits for one stream, or for the context's all.
    pub fn synchronise(&mut self, stream: Option<Handle>) -> Done<()> {
        self.emulator()?;
        match stream {
            Some(_) => self.streams.forbid_in_capture("a wait")?,
            None => self.streams.forbid_in_any_capture("a wait for the context")?,
        }
        self.streams.waits += 1;
        match stream {
            Some(stream) => self.settle(stream),
            None => self.settle_all(),
        }
    }

    fn happen(&mut self, work: &Work) -> Done<()> {
        let emulator = self.emulator()?;
        // SAFETY: addresses were checked when the work was given: device memory goes only after all work has happened, and
        // so does pinned memory. A launch's promises are those of the program under test.
        let done = unsafe {
            match work {
                Work::Launch { launch, arguments } => {
                    self.streams.launches += 1;
                    if self.settings.fail == Some(self.streams.launches) {
                        self.lost = Some(CUresult::CUDA_ERROR_LAUNCH_FAILED);
                        return refused(CUresult::CUDA_ERROR_LAUNCH_FAILED, "as the test asks");
                    }
                    emulator.launch("launch", launch, arguments.as_ptr(), arguments.bytes())
                }
                Work::ToDevice { from, to, bytes } => {
                    emulator.write(*to, std::slice::from_raw_parts(*from as *const u8, *bytes))
                }
                Work::ToHost { from, to, bytes } => {
                    emulator.read(*from, std::slice::from_raw_parts_mut(*to as *mut u8, *bytes))
                }
                Work::Copy { from, to, bytes } => emulator.copy(*from, *to, *bytes),
                Work::Fill { to, byte, bytes } => emulator.fill(*to, *byte, *bytes),
                Work::Record(event) => {
                    if let Some((at, _)) = self.streams.events.get_mut(event) {
                        *at = Event::At(Instant::now());
                    }
                    Ok(())
                }
                Work::Graph(all) => {
                    self.streams.graph_launches += 1;
                    return all.iter().try_for_each(|work| self.happen(work));
                }
            }
        };
        done.or_else(|e| {
            self.lost = Some(CUresult::CUDA_ERROR_LAUNCH_FAILED);
            refused(CUresult::CUDA_ERROR_LAUNCH_FAILED, e.to_string())
        })
    }

    pub fn begin_capture(&mut self, stream: Handle) -> Done<()> {
        self.emulator()?;
        let stream = self.streams.stream(stream)?;
        if stream.capture.is_some() {
            return refused(CUresult::CUDA_ERROR_ILLEGAL_STATE, "the stream is captured already");
        }
        stream.capture = Some(Capture { thread: std::thread::current().id(), noted: Some(Vec::new()) });
        Ok(())
    }

    pub fn end_capture(&mut self, stream: Handle) -> Done<Handle> {
        self.emulator()?;
        let Some(capture) = self.streams.stream(stream)?.capture.take() else {
            return refused(CUresult::CUDA_ERROR_ILLEGAL_STATE, "the stream is not captured");
        };
        if capture.thread != std::thread::current().id() {
            return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture");
        }
        let Some(noted) = capture.noted else {
            return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture has failed");
        };
        let handle = self.handle();
        self.streams.graphs.insert(handle, Arc::new(noted));
        Ok(handle)
    }

    pub fn instantiate(&mut self, graph: Handle) -> Done<Handle> {
        self.emulator()?;
        let Some(noted) = self.streams.graphs.get(&graph).cloned() else {
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such graph");
        };
        let handle = self.handle();
        self.streams.executables.insert(handle, noted);
        Ok(handle)
    }

    pub fn launch_graph(&mut self, executable: Handle, stream: Handle) -> Done<()> {
        match self.streams.executables.get(&executable).cloned() {
            Some(noted) => self.enqueue(stream, Work::Graph(noted)),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such executable graph"),
        }
    }

    pub fn end_graph(&mut self, graph: Handle) -> Done<()> {
        match self.streams.graphs.remove(&graph) {
            Some(_) => Ok(()),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such graph"),
        }
    }

    pub fn end_executable(&mut self, executable: Handle) -> Done<()> {
        match self.streams.executables.remove(&executable) {
            Some(_) => Ok(()),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such executable graph"),
        }
    }

    pub fn new_event(&mut self, timed: bool) -> Done<Handle> {
        self.emulator()?;
        let handle = self.handle();
        self.streams.events.insert(handle, (Event::Ahead { recorded: false }, timed));
        Ok(handle)
    }

    pub fn record(&mut self, event: Handle, stream: Handle) -> Done<()> {
        match self.streams.events.get_mut(&event) {
            Some((at, _)) => *at = Event::Ahead { recorded: true },
            None => return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such event"),
        }
        self.enqueue(stream, Work::Record(event))
    }

    /// Has the event's stream do what it was given up to the event; an event that was never recorded is waited for in vain.
    pub fn wait_for(&mut self, event: Handle) -> Done<()> {
        self.emulator()?;
        self.streams.forbid_in_capture("cuEventSynchronize")?;
        let up_to = |s: &Stream| s.waiting.iter().position(|w| matches!(w, Work::Record(e) if *e == event));
        let found = self.streams.streams.iter().find_map(|(h, s)| Some((*h, up_to(s)?)));
        if let Some((stream, position)) = found {
            let ahead: Vec<Work> = self.streams.stream(stream)?.waiting.drain(..=position).collect();
            ahead.iter().try_for_each(|work| self.happen(work))?;
        }
        match self.streams.events.get(&event) {
            Some(_) => Ok(()),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such event"),
        }
    }

    pub fn milliseconds(&mut self, begin: Handle, end: Handle) -> Done<f32> {
        self.emulator()?;
        match [begin, end].map(|event| self.streams.events.get(&event)) {
            [Some((Event::At(begin), true)), Some((Event::At(end), true))] => Ok((*end - *begin).as_secs_f32() * 1e3),
            [Some((Event::Ahead { recorded: true }, true)), _] | [_, Some((Event::Ahead { recorded: true }, true))] => {
                refused(CUresult::CUDA_ERROR_NOT_READY, "the stream has not come to the event")
            }
            _ => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "an event that was not recorded, or is not timed"),
        }
    }

    pub fn end_event(&mut self, event: Handle) -> Done<()> {
        match self.streams.events.remove(&event) {
            Some(_) => Ok(()),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such event"),
        }
    }
}
