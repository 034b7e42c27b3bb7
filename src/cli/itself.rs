//! Commands of this program, as processes of their own: as a user would start them.

use super::interrupt;
use crate::base::{Error, Result};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Runs `vlm ARGUMENTS` in `folder` (here, where None); what it prints is seen. Where Ctrl-C came, this program ends with
/// it, after `stopped`, the end of a sentence on how to go on.
pub fn run(arguments: &[String], folder: Option<&Path>, stopped: &str) -> Result<()> {
    let mut command = command(arguments)?;
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let status = command.status().map_err(|e| Error::io("start", Path::new("vlm"), e))?;
    check(arguments, status, stopped)
}

/// Runs `vlm ARGUMENTS`; what it printed on stdout. `stopped` as for [`run`].
pub fn output(arguments: &[String], stopped: &str) -> Result<String> {
    let done = command(arguments)?.stdout(Stdio::piped()).output();
    let done = done.map_err(|e| Error::io("start", Path::new("vlm"), e))?;
    check(arguments, done.status, stopped)?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn command(arguments: &[String]) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::io("find", "vlm itself", e))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// Errors: the command failed.
fn check(arguments: &[String], status: ExitStatus, stopped: &str) -> Result<()> {
    // a command may be done, or have ended in whatever way, when Ctrl-C comes: it was meant for all of them. One that was just
    // starting dies of it, maybe before this program has noticed.
    let told = status.code() == Some(interrupt::CODE.into())
        || [libc::SIGINT, libc::SIGTERM].iter().any(|signal| status.signal() == Some(*signal));
    if told || interrupt::asked() {
        interrupt::exit(stopped);
    }
    match status.success() {
        true => Ok(()),
        false => {
            let name = arguments.first().map_or("", String::as_str);
            Err(Error::Unsupported(format!("vlm {name} failed ({status}); its message is above")))
        }
    }
}
