//! Paths as they stand in a dataset: relative to its folder, so that both can move together.

use crate::base::{Error, Result};
use std::path::{Component, Path, PathBuf};

/// `path` as seen from `folder`, both absolute and `folder` canonical; `path` itself where they share only the root.
pub fn relative(path: &Path, folder: &Path) -> PathBuf {
    let path = without_dots(path);
    let shared = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    if path.components().take(shared).all(|c| c == Component::RootDir) {
        return path;
    }
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(path.components().skip(shared)).collect()
}

/// The path as it is written into JSON. Errors: it is not UTF-8.
pub fn text(path: &Path) -> Result<String> {
    let said = "the path is not UTF-8, which JSON cannot hold; rename it";
    path.to_str().map(String::from).ok_or_else(|| Error::file(path, said))
}

/// The path without `.` and `name/..`.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        let named = matches!(plain.components().next_back(), Some(Component::Normal(_)));
        match part {
            Component::CurDir => (),
            Component::ParentDir if named => _ = plain.pop(),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_one_place_to_another() {
        for (path, folder, want) in [
            ("/a/b/c.jpg", "/a/b", "c.jpg"),
            ("/a/b/c.jpg", "/a/d/e", "../../b/c.jpg"),
            ("/a/sets/../b/./c.jpg", "/a/out", "../b/c.jpg"),
            ("/a/b/c.jpg", "/x", "/a/b/c.jpg"),
        ] {
            assert_eq!(relative(Path::new(path), Path::new(folder)), Path::new(want));
        }
    }
}
