//! What the driver pretends, from the environment: `VLM_TEST_DRIVER="capability=8.6,memory=1000000,report=/tmp/x"`.

use std::path::PathBuf;

/// When what a stream was given happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As late as is allowed.
    Late,
    /// At once.
    Soon,
}

#[derive(Debug, Clone)]
pub struct Settings {
    /// What cuInit returns; not 0 where the driver does not work.
    pub init: u32,
    /// The CUDA version that it serves, as 13000.
    pub version: i32,
    /// The newest PTX that it compiles, as 9.0; None: any.
    pub ptx: Option<(i32, i32)>,
    /// What the load of machine code returns; not 0 where the driver is too old for it.
    pub cubin: u32,
    pub gpus: i32,
    pub capability: (i32, i32),
    pub multiprocessors: i32,
    /// Bytes of device memory.
    pub memory: usize,
    pub when: When,
    /// The launch that fails, counted from 1.
    pub fail: Option<u64>,
    /// A file that gets a line for each refusal, and one when the context is released.
    pub report: Option<PathBuf>,
}

impl Settings {
    /// Panics where a setting cannot be read: this is a test's mistake.
    pub fn parse(said: &str) -> Settings {
        let mut settings = Settings {
            init: 0,
            version: 13000,
            ptx: None,
            cubin: 0,
            gpus: 1,
            capability: (9, 0),
            multiprocessors: 4,
            memory: 4 << 30,
            when: When::Late,
            fail: None,
            report: None,
        };
        for setting in said.split(',').filter(|s| !s.is_empty()) {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            let number = || value.parse::<u64>().unwrap_or_else(|e| panic!("{setting}: {e}"));
            let two_numbers = || {
                let (major, minor) = value.split_once('.').unwrap_or_else(|| panic!("{setting}: not like 8.6"));
                let digit = |s: &str| s.parse().unwrap_or_else(|e| panic!("{setting}: {e}"));
                (digit(major), digit(minor))
            };
            match key {
                "init" => settings.init = number() as u32,
                "version" => settings.version = number() as i32,
                "cubin" => settings.cubin = number() as u32,
                "gpus" => settings.gpus = number() as i32,
                "multiprocessors" => settings.multiprocessors = number() as i32,
                "memory" => settings.memory = number() as usize,
                "fail" => settings.fail = Some(number()),
                "report" => settings.report = Some(value.into()),
                "when" => settings.when = if value == "soon" { When::Soon } else { When::Late },
                "capability" => settings.capability = two_numbers(),
                "ptx" => settings.ptx = Some(two_numbers()),
                _ => panic!("the test driver has no setting {key}"),
            }
        }
        settings
    }
}
