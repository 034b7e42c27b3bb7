//! Commands of this program, as processes of their own: as a user would start them.

use super::interrupt;
use crate::base::{Error, Result};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Runs `vlm ARGUMENTS` in `folder` (here, where None); what it prints is seen.
pub fn run(arguments: &[String], folder: Option<&Path>) -> Result<()> {
    let mut command = command(arguments)?;
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let status = command.status().map_err(|e| Error::io("start", Path::new("vlm"), e))?;
    check(arguments, status)
}

/// Runs `vlm ARGUMENTS`; what it printed on stdout.
pub fn output(arguments: &[String]) -> Result<String> {
    let done = command(arguments)?.stdout(Stdio::piped()).output();
    let done = done.map_err(|e| Error::io("start", Path::new("vlm"), e))?;
    check(arguments, done.status)?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn command(arguments: &[String]) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::io("find", "vlm itself", e))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// Errors: the command failed. Where Ctrl-C ended it, this program ends, too.
fn check(arguments: &[String], status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) if code == i32::from(interrupt::CODE) => std::process::exit(code),
        _ if interrupt::asked() => std::process::exit(interrupt::CODE.into()),
        _ => {
            let name = arguments.first().map_or("", String::as_str);
            Err(Error::Unsupported(format!("vlm {name} failed ({status}); its message is above")))
        }
    }
}
