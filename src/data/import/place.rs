//! Where an image lies that a table or annotations name.
//!
//! A relative path starts from the images' folder and has to stay inside, because such files come from others: `..` that
//! leads out is refused. A path that begins with `/` says openly where it leads, and is taken. Links are followed: who
//! put them there owns the disk.

use std::path::{Component, Path, PathBuf};

/// The absolute path that `text` means below `root`, without `.` and `..`. The error is a sentence without the place.
pub fn place(text: &str, root: &Path) -> Result<PathBuf, String> {
    let scheme = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if scheme("http://") || scheme("https://") {
        return Err(format!("{text} is on the network, and photos are read from files only; download it"));
    }
    if text.is_empty() {
        return Err("the image's path is empty".into());
    }
    let mut place = if text.starts_with('/') { PathBuf::from("/") } else { root.to_path_buf() };
    let mut depth = 0usize;
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => {
                place.push(name);
                depth += 1;
            }
            Component::ParentDir if depth == 0 && !text.starts_with('/') => {
                return Err(format!(
                    "the path {text} leads out of the images' folder {}; name another with --images, or write the \
                     whole path, from /, if that is meant",
                    root.display()
                ));
            }
            Component::ParentDir => {
                place.pop();
                depth = depth.saturating_sub(1);
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => (),
        }
    }
    match std::fs::metadata(&place) {
        Ok(found) if found.is_file() => Ok(place),
        Ok(_) => Err(format!("the image {} is not a file", place.display())),
        Err(_) if text.contains('\\') => {
            Err(format!("cannot find the image {}; folders are separated by / here, not by \\", place.display()))
        }
        Err(e) => Err(format!("cannot find the image {}: {e}; --images names the folder they lie in", place.display())),
    }
}
