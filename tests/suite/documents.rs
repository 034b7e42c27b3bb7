//! The documents say what is: paths exist, commands run and print what is shown, rooms keep to their floors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What stands in backticks, outside fenced blocks.
fn backticked(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    assert!(!fenced, "a fenced block is not closed");
    found
}

/// The command lines of fenced `console` blocks, each with what is shown below it.
fn console(text: &str) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => (),
            _ => match line.strip_prefix("$ ") {
                Some(command) => commands.push((command.to_owned(), Vec::new())),
                None => commands.last_mut().expect("output follows a command").1.push(line.to_owned()),
            },
        }
    }
    commands
}

/// The lines of fenced `sh` blocks: commands that need more than this repository has, and are not run here.
fn scripts(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => found.push(line.trim().to_owned()),
            _ => (),
        }
    }
    found
}

/// Words of a command line; double quotes join.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate().map(|(i, part)| match i % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    parts.flat_map(|part: Vec<String>| part).collect()
}

/// The arguments of a line that calls the program, in either of the ways that the README does.
fn arguments(line: &str) -> Option<Vec<String>> {
    let rest = line.strip_prefix("vlm ").or_else(|| line.strip_prefix("cargo run --release -- "))?;
    Some(words(rest))
}

fn vlm(arguments: &[String], folder: &Path) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_vlm")).args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap_or(-1), text(done.stdout), text(done.stderr))
}

/// Whether `line` is what is shown, where … stands for anything.
fn matches(line: &str, shown: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    for (i, part) in parts.iter().enumerate() {
        let at = if i + 1 == parts.len() && !part.is_empty() { rest.rfind(part) } else { rest.find(part) };
        let Some(at) = at else { return false };
        rest = &rest[at + part.len()..];
        if i + 1 == parts.len() && part.is_empty() {
            return true;
        }
    }
    rest.is_empty()
}

#[test]
fn shown_lines_match_with_gaps_and_only_so() {
    for (line, shown, want) in [
        ("abc", "abc", true),
        ("abc", "ab", false),
        ("ab", "abc", false),
        ("abc", "a…c", true),
        ("abcd", "a…c", false),
        ("abc", "a…", true),
        ("xbc", "a…", false),
        ("1,2,3", "…,…", true),
        ("1", "…,…", false),
        ("cc", "…c", true),
    ] {
        assert_eq!(matches(line, shown), want, "{line} {shown}");
    }
}

#[test]
fn every_command_of_the_readme_runs_and_prints_what_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("tests"), folder.path().join("tests")).unwrap();
    let mut used = BTreeSet::new();
    for (line, shown) in console(&read("README.md")) {
        let Some(arguments) = arguments(&line) else {
            assert_eq!(line, "tools/install-nvcc && cargo test", "a command that this test does not know");
            continue;
        };
        if arguments[0] == "demo" {
            // minutes long; demo.rs runs it at a small size
            used.insert(arguments[0].clone());
            continue;
        }
        let (code, stdout, stderr) = vlm(&arguments, folder.path());
        assert_eq!(code, 0, "{line}\n{stderr}");
        let mut got = stdout.lines();
        let mut shown = shown.iter().peekable();
        while let Some(want) = shown.next() {
            if want == "…" {
                // lines left out: up to the next that is shown
                match shown.peek() {
                    Some(next) => {
                        let before = got.clone().take_while(|l| !matches(l, next)).count();
                        (0..before).for_each(|_| _ = got.next());
                    }
                    None => got = "".lines(),
                }
                continue;
            }
            let line_got = got.next().unwrap_or_else(|| panic!("{line}\nprinted no more, and {want:?} is shown"));
            assert!(matches(line_got, want), "{line}\nprinted  {line_got:?}\nand not  {want:?}");
        }
        // a single shown line with a gap stands for a longer answer
        assert!(got.next().is_none() || line == "vlm doctor", "{line}\nprinted more than is shown");
        used.insert(arguments[0].clone());
    }
    assert_eq!(used, commands(), "each command has an example in the README");
}

/// The subcommands, as the program lists them.
fn commands() -> BTreeSet<String> {
    inner_commands(&vlm(&["--help".into()], root()).1)
}

fn inner_commands(help: &str) -> BTreeSet<String> {
    let list = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| l.starts_with("  "));
    list.filter_map(|l| l.split_whitespace().next()).filter(|c| *c != "help").map(str::to_owned).collect()
}

/// The commands in every document, in backticks, blocks and the examples that --help shows, name only what exists.
#[test]
fn every_command_and_flag_that_is_written_exists() {
    let commands = commands();
    assert!(commands.len() > 5, "{commands:?}");
    let mut help: BTreeMap<&String, String> =
        commands.iter().map(|c| (c, vlm(&[c.clone(), "--help".into()], root()).1)).collect();
    // a command of commands: the flags are those of the inner one
    for outer in ["data", "bench"] {
        for inner in inner_commands(&help[commands.get(outer).unwrap()]) {
            let text = vlm(&[outer.into(), inner, "--help".into()], root()).1;
            help.entry(commands.get(outer).unwrap()).or_default().push_str(&text);
        }
    }
    let mut written: Vec<(String, String)> = Vec::new();
    for document in ["README.md", "CONTRIBUTING.md", "src/lib.rs"] {
        let text = read(document);
        written.extend(backticked(&text).into_iter().map(|line| (document.to_owned(), line)));
        written.extend(console(&text).into_iter().map(|(line, _)| (document.to_owned(), line)));
        written.extend(scripts(&text).into_iter().map(|line| (document.to_owned(), line)));
    }
    for (command, text) in &help {
        let examples: Vec<&str> = text.lines().filter_map(|l| l.split_once(": vlm ").map(|(_, rest)| rest)).collect();
        assert!(!examples.is_empty(), "vlm {command} --help shows no example");
        written.extend(examples.iter().map(|e| (format!("vlm {command} --help"), format!("vlm {e}"))));
    }
    let mut checked = 0;
    for (place, line) in written {
        let Some(arguments) = arguments(&line).filter(|a| a[0].chars().all(|c| c.is_ascii_lowercase())) else {
            continue;
        };
        let text = help.get(&arguments[0]).unwrap_or_else(|| panic!("{place}: `{line}`: no such command"));
        for flag in arguments.iter().filter(|a| a.starts_with("--")) {
            let known = text.split_whitespace().any(|word| word.trim_end_matches(',') == flag);
            assert!(known, "{place}: `{line}`: vlm {} has no {flag}", arguments[0]);
        }
        checked += 1;
    }
    assert!(checked > 15, "{checked} commands");
}

#[test]
fn every_path_that_is_written_exists() {
    let documents = ["README.md", "CONTRIBUTING.md", "NOTICE", "src/lib.rs", "tests/golden/README.md"];
    let mut checked = 0;
    for document in documents {
        for text in backticked(&read(document)) {
            let folders = ["src/", "tests/", "tools/", "benches/", ".ci/"];
            let in_root = ["LICENSE", "NOTICE", "README.md", "CONTRIBUTING.md", "Cargo.toml"];
            let name = text.split_whitespace().next().unwrap_or_default().trim_end_matches(',');
            if name.contains('*') || !(in_root.contains(&name) || folders.iter().any(|f| name.starts_with(f))) {
                continue;
            }
            assert!(root().join(name).exists(), "{document}: `{name}` does not exist");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} paths");
}

/// Rows of the tables in the map, cell by cell, without backticks.
fn rows(columns: usize) -> Vec<Vec<String>> {
    let map = read("src/lib.rs");
    let lines = map.lines().filter_map(|l| l.strip_prefix("//! | ")?.strip_suffix(" |"));
    let cells = lines.map(|l| l.split(" | ").map(|c| c.trim().replace('`', "")).collect::<Vec<_>>());
    cells.filter(|c| c.len() == columns && c[0] != "what happens" && c[0] != "floor").collect()
}

#[test]
fn every_function_of_the_map_is_in_its_file() {
    let rows = rows(3);
    assert!(rows.len() > 25, "{}", rows.len());
    for row in rows {
        let text = read(&row[1]);
        let defined = text.contains(&format!("fn {}", row[2])) || text.contains(&format!("KERNEL({},", row[2]));
        assert!(defined, "src/lib.rs: {} has no function {}", row[1], row[2]);
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let nested = entries.map(|path| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    });
    nested.flatten().filter(|p| p.extension().is_some_and(|e| e == "rs")).collect()
}

/// The first lines of a room say the same as its row.
#[test]
fn rooms_say_what_they_use() {
    let rows = rows(4);
    let rooms: BTreeSet<&str> = rows.iter().map(|r| r[1].as_str()).collect();
    for [floor, room, _, may_use] in rows.iter().map(|r| [&r[0], &r[1], &r[2], &r[3]]) {
        let file = read(&format!("src/{room}/mod.rs"));
        let head = file.lines().map_while(|l| l.strip_prefix("//!")).collect::<String>();
        let (_, uses) = head.split_once(&format!(" Floor {floor}: ")).unwrap_or_else(|| panic!("src/{room}: no floor"));
        let uses = uses.split(['.', ';']).next().unwrap();
        match may_use.as_str() {
            "everything" | "nothing" => assert!(uses.contains(may_use.as_str()), "src/{room}/mod.rs: {uses}"),
            names => {
                let said: BTreeSet<&str> =
                    uses.split('`').skip(1).step_by(2).filter(|name| rooms.contains(name)).collect();
                assert_eq!(said, names.split(", ").collect(), "src/{room}/mod.rs: {uses}");
            }
        }
    }
}

#[test]
fn rooms_use_only_what_their_row_names() {
    let rooms: BTreeMap<String, (u8, String)> =
        rows(4).into_iter().map(|r| (r[1].clone(), (r[0].parse().unwrap(), r[3].clone()))).collect();
    let declared: BTreeSet<String> = read("src/lib.rs")
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(rooms.keys().cloned().collect::<BTreeSet<_>>(), declared, "the table of rooms and `pub mod`");
    for (room, (floor, may_use)) in &rooms {
        let allowed: BTreeSet<&str> = match may_use.as_str() {
            "everything" => declared.iter().map(String::as_str).collect(),
            "nothing" => BTreeSet::new(),
            names => names.split(", ").collect(),
        };
        for name in &allowed {
            let (other, _) = rooms.get(*name).unwrap_or_else(|| panic!("{room} may use {name}, which is no room"));
            let named_sideways = other == floor && *name != room.as_str();
            assert!(other < floor || named_sideways || may_use == "everything", "{room} may use {name}, above it");
        }
        let mut files = sources(&root().join("src").join(room));
        assert!(!files.is_empty(), "src/{room}");
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
            for used in code.flat_map(|l| l.split("crate::").skip(1)) {
                let name: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                // a macro stands at the crate's root, whichever room defines it
                let is_macro = used[name.len()..].starts_with('!');
                let fine = is_macro || name == *room || allowed.contains(name.as_str());
                assert!(fine, "{}: uses crate::{name}, which {room} may not (src/lib.rs)", file.display());
            }
        }
    }
}
