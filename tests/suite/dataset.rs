//! Message files and datasets: every shape, every refusal, and no panic whatever the file holds.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use vlm::data::dataset::{Dataset, OnBad, Sample, read_dataset};
use vlm::data::messages::{Content, Conversation, ImageSource, Message, Part, Role, read_messages};

/// A folder with three files that stand for images.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png", "sub dir/ü.jpg"] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"not looked into").unwrap();
    }
    folder
}

fn write(folder: &Path, content: impl AsRef<[u8]>) -> std::path::PathBuf {
    let file = folder.join("data.jsonl");
    std::fs::write(&file, content).unwrap();
    file
}

fn image(folder: &Path, name: &str) -> Part {
    Part::Image(ImageSource::File(folder.join(name)))
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn one(folder: &Path, line: &Value, prompt: Option<&str>) -> Sample {
    let Dataset { mut samples, skipped, .. } =
        read_dataset(&write(folder, line.to_string()), prompt, OnBad::Fail).unwrap();
    assert_eq!((samples.len(), skipped.len()), (1, 0));
    samples.remove(0)
}

fn error_of(folder: &Path, line: &str, prompt: Option<&str>) -> String {
    read_dataset(&write(folder, line), prompt, OnBad::Fail).unwrap_err().to_string()
}

#[test]
fn images_in_place() {
    let dir = folder();
    let at = dir.path();
    let absolute = at.join("b.png");
    let line = json!({"id": 7, "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [
            {"type": "image", "image": "a.png"},
            {"type": "image_url", "image_url": {"url": "sub dir/ü.jpg", "detail": "high"}},
            {"type": "image_url", "image_url": "a.png"},
            {"type": "image", "url": format!("file://{}", absolute.display())},
            {"type": "image", "path": absolute},
            {"type": "text", "text": "A literal <image>."},
            {"image": "b.png"},
            {"text": "?"},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "de"}, {"type": "text", "text": "nt"}]},
    ]});
    let sample = one(at, &line, None);
    let b = Part::Image(ImageSource::File(absolute));
    let parts = vec![
        image(at, "a.png"),
        image(at, "sub dir/ü.jpg"),
        image(at, "a.png"),
        b.clone(),
        b.clone(),
        text("A literal <image>."),
        b,
        text("?"),
    ];
    assert_eq!(sample.conversation.messages[0], Message::text(Role::System, "S"));
    assert_eq!(sample.conversation.messages[1], Message::parts(Role::User, parts));
    assert_eq!(sample.label.as_deref(), Some("dent"));
    assert_eq!((sample.line, sample.images().count()), (1, 6));
}

#[test]
fn images_beside_the_text() {
    let dir = folder();
    let at = dir.path();
    let line = json!({"images": ["a.png", {"path": "b.png", "bytes": null}, "a.png"], "label": "a class", "messages": [
        {"role": "user", "content": "<image>\nFirst; <image>second"},
        {"role": "assistant", "content": "dent"},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]},
    ]});
    let sample = one(at, &line, None);
    let parts = vec![image(at, "a.png"), text("\nFirst; "), image(at, "b.png"), text("second")];
    let messages = vec![
        Message::parts(Role::User, parts),
        Message::text(Role::Assistant, "dent"),
        Message::parts(Role::User, vec![text("x"), image(at, "a.png")]),
    ];
    assert_eq!(sample.conversation, Conversation { messages, tools: None });
    assert_eq!(sample.label.as_deref(), Some("a class"));
}

#[test]
fn llava() {
    let dir = folder();
    let at = dir.path();
    let line = json!({"id": "x", "image": "a.png", "system": "S", "conversations": [
        {"from": "human", "value": "Is it?\n<image>"}, {"from": "gpt", "value": "Yes"}, {"from": "human", "value": "Why?"},
    ]});
    let sample = one(at, &line, None);
    let messages = vec![
        Message::text(Role::System, "S"),
        Message::parts(Role::User, vec![text("Is it?\n"), image(at, "a.png")]),
        Message::text(Role::Assistant, "Yes"),
        Message::text(Role::User, "Why?"),
    ];
    assert_eq!(sample.conversation.messages, messages);
    assert_eq!(sample.label.as_deref(), Some("Yes"));
    let line = json!({"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image><image>"}]});
    let sample = one(at, &line, None);
    assert_eq!((sample.images().count(), sample.label), (2, None));
}

#[test]
fn a_label_beside_an_image() {
    let dir = folder();
    let at = dir.path();
    let line = json!({"image": "a.png", "label": "dent"});
    for (prompt, parts) in [
        ("What?", vec![image(at, "a.png"), text("What?")]),
        ("Look: <image>What?", vec![text("Look: "), image(at, "a.png"), text("What?")]),
        ("", vec![image(at, "a.png")]),
    ] {
        let sample = one(at, &line, Some(prompt));
        let messages = vec![Message::parts(Role::User, parts), Message::text(Role::Assistant, "dent")];
        assert_eq!(sample.conversation.messages, messages);
        assert_eq!(sample.label.as_deref(), Some("dent"));
    }
    let sample = one(at, &json!({"image": "a.png", "label": 3}), Some("What?"));
    assert_eq!((sample.label.as_deref(), sample.conversation.last_answer().as_deref()), (Some("3"), Some("3")));
}

#[test]
fn a_prompt_that_lines_have_no_use_for_is_said() {
    let dir = folder();
    let (asks, bare) =
        (json!({"messages": [{"role": "user", "content": "Which?"}]}), json!({"image": "a.png", "label": "x"}));
    let said = |lines: &[&Value], prompt: Option<&str>| {
        let lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        let file = write(dir.path(), lines.join("\n"));
        let said = read_dataset(&file, prompt, OnBad::Fail).unwrap().unused_prompt?;
        let said = said.strip_prefix(&format!("{}: --prompt is for lines with image and label; ", file.display()))?;
        Some(said.to_owned())
    };
    for (lines, wanted) in [
        (&[&asks][..], Some("its line brings its own question")),
        (&[&asks, &asks], Some("all 2 lines bring their own question")),
        (&[&bare, &asks, &bare], Some("1 of 3 lines brings its own question")),
        (&[&asks, &asks, &bare], Some("2 of 3 lines bring their own question")),
        (&[&bare, &bare], None),
    ] {
        assert_eq!(said(lines, Some("What?")).as_deref(), wanted);
    }
    assert_eq!(said(&[&asks], None), None);
}

/// What a model can write is composed Unicode, and so is what it is to write; a path is what the file system has.
#[test]
fn labels_are_composed_unicode() {
    let dir = folder();
    let (decomposed, path) = ("gru\u{308}n", "a\u{308}.png");
    std::fs::copy(dir.path().join("a.png"), dir.path().join(path)).unwrap();
    let turns = json!([{"role": "user", "content": "Which?"}, {"role": "assistant", "content": decomposed}]);
    for line in [json!({"image": path, "label": decomposed}), json!({"messages": turns})] {
        let sample = one(dir.path(), &line, Some("?"));
        assert_eq!(sample.label.as_deref(), Some("gr\u{fc}n"), "{line}");
        assert!(sample.images().all(|i| i.file() == Some(dir.path().join(path).as_path())), "{line}");
    }
    let sample = one(dir.path(), &json!({"image": path, "label": [decomposed, "rot"]}), Some("?"));
    assert_eq!(sample.label.as_deref(), Some("gr\u{fc}n, rot"));
    assert_eq!(sample.conversation.last_answer().as_deref(), Some("gr\u{fc}n, rot"));
}

#[test]
fn data_urls_and_base64() {
    let dir = folder();
    // "hi" in base64, with and without its padding.
    for content in
        ["data:image/png;base64,aGk=", "data:image/png;base64,aGk", "DATA:;base64,aGk=", "data:image/x;q=1;base64,aGk="]
    {
        let line =
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": content}}]}]});
        let sample = one(dir.path(), &line, None);
        let Some(ImageSource::Bytes { bytes, .. }) = sample.images().next() else { panic!("{content}") };
        assert_eq!(&**bytes, b"hi");
        assert!(sample.images().next().unwrap().to_string().ends_with(";base64 (2 bytes)"));
    }
    let line = json!({"messages": [{"role": "user", "content": [{"type": "image", "base64": "aGk="}]}]});
    assert_eq!(one(dir.path(), &line, None).images().count(), 1);
    let line = json!({"images": [{"base64": "aGk="}], "messages": [{"role": "user", "content": "<image>"}]});
    assert_eq!(one(dir.path(), &line, None).images().count(), 1);
    for (content, wanted) in [
        ("data:image/png;base64", "has no comma"),
        ("data:image/png,hi", "is not base64"),
        ("data:video/mp4;base64,aGk=", "of type video/mp4"),
        ("data:image/png;base64,a*", "broken base64"),
        ("data:image/png;base64,", "holds no data"),
    ] {
        let error = error_of(dir.path(), &json!({"image": content, "label": "x"}).to_string(), Some("?"));
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn line_ends_blank_lines_and_byte_order_marks() {
    let dir = folder();
    let line = r#"{"image": "a.png", "label": "x"}"#;
    let file = write(dir.path(), format!("\u{feff}{line}\r\n\r\n  \t\n{line}\n\n{line}"));
    let lines: Vec<usize> =
        read_dataset(&file, Some("?"), OnBad::Fail).unwrap().samples.iter().map(|s| s.line).collect();
    assert_eq!(lines, [1, 4, 6]);
}

#[test]
fn bad_lines_are_errors_or_listed() {
    let dir = folder();
    let good = r#"{"image": "a.png", "label": "x"}"#;
    let file = write(dir.path(), format!("{good}\n{{\n{good}\n{{\"image\": \"gone.png\", \"label\": \"x\"}}\n"));
    let error = read_dataset(&file, Some("?"), OnBad::Fail).unwrap_err().to_string();
    assert!(error.contains("data.jsonl, line 2: not valid JSON: EOF while parsing an object (column 1)"), "{error}");
    let dataset = read_dataset(&file, Some("?"), OnBad::Skip).unwrap();
    assert_eq!(dataset.samples.len(), 2);
    let skipped: Vec<String> = dataset.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(skipped.len(), 2);
    assert!(
        skipped[1].contains("line 4: image 1: cannot find the image") && skipped[1].contains("gone.png"),
        "{skipped:?}"
    );

    let error = read_dataset(&write(dir.path(), "{\n{\n"), None, OnBad::Skip).unwrap_err().to_string();
    assert!(error.contains("of its 2 lines none can be read") && error.contains("line 1"), "{error}");
    for empty in ["", "\n \r\n", "\u{feff}"] {
        let error = read_dataset(&write(dir.path(), empty), None, OnBad::Skip).unwrap_err().to_string();
        assert!(error.contains("data.jsonl: holds no samples"), "{error}");
    }
    let error = read_dataset(&dir.path().join("gone.jsonl"), None, OnBad::Skip).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
    let error = read_dataset(&write(dir.path(), b"{\"label\": \"\xff\"}"), None, OnBad::Fail).unwrap_err().to_string();
    assert!(error.contains("line 1: not UTF-8 (byte 12)"), "{error}");
}

#[test]
fn every_refusal_says_what_is_wrong() {
    let dir = folder();
    let in_user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let user = json!([{"role": "user", "content": "<image>"}]);
    for (line, wanted) in [
        (json!(1), "wanted a JSON object, got another value"),
        (json!([{}]), "jq -c '.[]'"),
        (json!({}), r#"neither "messages" nor "conversations" nor "image" and "label""#),
        (json!({"label": "x"}), r#"neither "messages""#),
        (json!({"image": "a.png", "label": "x"}), "--prompt"),
        (json!({"messages": [], "conversations": []}), "keep one"),
        (json!({"messages": null}), "has neither"),
        (json!({"messages": {}}), "not an array"),
        (json!({"messages": []}), "has no messages"),
        (json!({"messages": [1]}), "message 1: wanted an object"),
        (json!({"messages": [{"content": "x"}]}), "message 1: has no \"role\""),
        (json!({"messages": [{"role": 1}]}), "message 1: its \"role\" is not a string"),
        (json!({"messages": [{"role": "developer"}]}), "message 1: unknown role \"developer\"; known are system, user"),
        (json!({"conversations": [{"from": "human"}]}), "message 1: has no \"value\""),
        (in_user(json!(5)), "neither text nor an array"),
        (in_user(json!(["x"])), "item 1: wanted an object"),
        (in_user(json!([{"type": 1}])), "item 1: its \"type\" is not a string"),
        (in_user(json!([{"type": "text"}])), "item 1: has no \"text\""),
        (in_user(json!([{"type": "video", "video": "x"}])), "item 1: video is not supported"),
        (in_user(json!([{"type": "input_image"}])), "item 1: unknown type \"input_image\"; known are text, image"),
        (in_user(json!([{"type": "image"}])), "item 1: an image without a source"),
        (in_user(json!([{"type": "image", "image": "a.png", "url": "b.png"}])), "has both \"image\" and \"url\""),
        (in_user(json!([{"type": "image", "image": "a.png", "max_pixels": 9}])), "\"max_pixels\" of a single image"),
        (in_user(json!([{"type": "image", "image": 1}])), "an image is a path or a data: URL"),
        (in_user(json!([{"type": "image", "image": {"bytes": "x"}}])), "wanted one of \"url\", \"path\""),
        (in_user(json!([{"type": "image", "image": ""}])), "an image's path is empty"),
        (in_user(json!([{"type": "image", "image": "sub dir"}])), "is not a file"),
        (in_user(json!([{"type": "image", "image": "A".repeat(9000)}])), "AAAA…"),
        (in_user(json!([{"type": "image", "image": "HTTPS://x.org/a.png"}])), "download it"),
        (json!({"messages": user, "images": []}), "0 images are listed, and the text has 1 place for"),
        (json!({"messages": user, "images": ["a.png", "b.png"]}), "2 images are listed, and the text has 1 place for"),
        (json!({"messages": user, "images": ["gone.png"]}), "image 1: cannot find the image"),
        (json!({"messages": user, "images": ["a.png"], "image": "a.png"}), "has both \"images\" and \"image\""),
        (json!({"messages": user, "videos": ["a.mp4"]}), "has \"videos\", and only images"),
        (json!({"messages": user, "rejected": {}}), "preference pairs"),
        (json!({"messages": user, "images": ["a.png"], "system": 1}), "its \"system\" is not a string"),
        (
            json!({"messages": [{"role": "system", "content": "a"}], "system": "b"}),
            "has \"system\" and a first message",
        ),
        (json!({"messages": user, "images": ["a.png"], "tools": "{"}), "its \"tools\" is a string, not valid JSON"),
        (json!({"messages": user, "images": ["a.png"], "tools": {}}), "its \"tools\" is not an array of objects"),
        (json!({"messages": user, "label": " "}), "its \"label\" is empty"),
        (json!({"messages": user, "label": 1.5}), "neither text nor a whole number nor a list"),
        (json!({"messages": user, "label": []}), "its \"label\" is an empty list"),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}),
            "message 1: \"weight\" asks to leave",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "loss": false}]}),
            "message 1: \"loss\" asks to leave",
        ),
    ] {
        let error = error_of(dir.path(), &line.to_string(), None);
        assert!(error.contains("data.jsonl, line 1: ") && error.contains(wanted), "{error}");
        assert!(error.len() < 700, "{error}");
    }
    let labelled = |image: Value| json!({"image": image, "label": "x"}).to_string();
    let error = error_of(dir.path(), &labelled(json!(["a.png", "b.png"])), Some("?"));
    assert!(error.contains("exactly one image"), "{error}");
    assert!(error_of(dir.path(), &labelled(json!(null)), Some("?")).contains("exactly one image"));
    assert!(error_of(dir.path(), &labelled(json!("a.png")), Some("<image><image>")).contains("more than one <image>"));
}

#[test]
fn what_changes_nothing_is_let_through() {
    let dir = folder();
    let line = json!({"messages": [
        {"role": "user", "content": "A literal <image>", "weight": 0},
        {"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": {}}], "weight": 0},
        {"role": "tool", "content": "<image>"},
        {"role": "assistant", "content": "", "loss": true, "weight": 1},
    ], "images": null, "videos": [], "system": "", "tools": "[{\"name\": \"f\"}]", "source": [1]});
    let sample = one(dir.path(), &line, None);
    let messages = &sample.conversation.messages;
    assert_eq!(messages[0].content, Content::Text("A literal <image>".into()));
    assert_eq!(messages[1].content, Content::Absent);
    assert_eq!(messages[1].extra["tool_calls"], json!([{"name": "f", "arguments": {}}]));
    assert_eq!((messages.len(), sample.label), (4, None));
    assert_eq!(sample.conversation.tools, Some(json!([{"name": "f"}])));
}

#[test]
fn message_files() {
    let dir = folder();
    let read = |content: &str| read_messages(&write(dir.path(), content)).map_err(|e| e.to_string());
    let wanted = Conversation { messages: vec![Message::text(Role::User, "x")], tools: None };
    assert_eq!(read("\u{feff}{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\r\n").unwrap(), wanted);
    assert_eq!(read(r#"[{"role": "user", "content": "x"}]"#).unwrap(), wanted);
    for (content, wanted) in [
        (" ", "data.jsonl, line 1: the file is empty"),
        ("{\n\"messages\": [\n}", "data.jsonl, line 3: not valid JSON: expected value (column 1)"),
        ("7", "data.jsonl: wanted a JSON object"),
        ("{}", "data.jsonl: has neither"),
        (r#"{"image": "a.png", "label": "x"}"#, "data.jsonl: has neither"),
        (r#"[{"role": "user", "content": [{"image": "gone.png"}]}]"#, "message 1: item 1: cannot find the image"),
    ] {
        let error = read(content).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(read_messages(&dir.path().join("gone")).unwrap_err().to_string().contains("cannot read"));
}

/// JSON made of the keys and values that the readers look for, in the wrong places too.
fn any_json() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 34] = [
        "messages",
        "conversations",
        "role",
        "from",
        "content",
        "value",
        "user",
        "human",
        "assistant",
        "gpt",
        "system",
        "tool",
        "type",
        "text",
        "image",
        "images",
        "image_url",
        "url",
        "path",
        "base64",
        "label",
        "tools",
        "tool_calls",
        "a.png",
        "<image>",
        "data:image/png;base64,aGk=",
        "data:,",
        "file://",
        "é<im",
        "",
        "video",
        "weight",
        "[{}]",
        "[",
    ];
    let word = proptest::sample::select(&WORDS[..]);
    let leaf = prop_oneof![
        6 => word.clone().prop_map(|word| json!(word)),
        1 => any::<f64>().prop_map(|x| json!(x)),
        1 => any::<i64>().prop_map(|x| json!(x)),
        1 => any::<bool>().prop_map(|x| json!(x)),
        1 => ".{0,9}".prop_map(|x| json!(x)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            proptest::collection::vec((word.clone(), inner), 0..6)
                .prop_map(|entries| entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

/// A good line to spoil.
fn good_line() -> Value {
    json!({"images": ["a.png"], "tools": [{"name": "f"}], "label": "x", "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "image"}, {"type": "image", "image": "b.png"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "dent", "tool_calls": [{"name": "f", "arguments": "{}"}]},
    ]})
}

/// Replaces the `n`-th value, counted through the tree.
fn replace(value: &mut Value, n: &mut usize, by: &Value) {
    if *n == 0 {
        *value = by.clone();
    }
    *n = n.wrapping_sub(1);
    match value {
        Value::Array(list) if *n < 1000 => list.iter_mut().for_each(|value| replace(value, n, by)),
        Value::Object(map) if *n < 1000 => map.values_mut().for_each(|value| replace(value, n, by)),
        _ => {}
    }
}

/// Reads a file both ways; whatever it holds, each sample is whole or an error with the file's name.
fn survives(content: &[u8]) {
    let dir = folder();
    let file = write(dir.path(), content);
    match read_dataset(&file, Some("What?"), OnBad::Skip) {
        Ok(dataset) => {
            assert!(dataset.samples.iter().all(|sample| !sample.conversation.messages.is_empty()));
            assert!(dataset.skipped.iter().all(|error| error.to_string().contains("data.jsonl, line ")));
        }
        Err(error) => assert!(error.to_string().contains("data.jsonl")),
    }
    if let Err(error) = read_messages(&file) {
        assert!(error.to_string().contains("data.jsonl"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_json_makes_the_readers_panic(value in any_json()) {
        survives(value.to_string().as_bytes());
    }

    #[test]
    fn no_spoilt_line_makes_the_readers_panic(place in 0usize..30, by in any_json(), cut in 0.0..1.0, byte in any::<u8>()) {
        let mut line = good_line();
        replace(&mut line, &mut place.clone(), &by);
        let mut bytes = line.to_string().into_bytes();
        survives(&bytes);
        let at = (bytes.len() as f64 * cut) as usize;
        bytes[at] = byte;
        survives(&bytes);
        survives(&bytes[..at]);
    }

    #[test]
    fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survives(&bytes);
    }
}

#[test]
fn deep_nesting_is_an_error() {
    for deep in ["[".repeat(100_000), "{\"messages\":".repeat(100_000)] {
        let dir = folder();
        let file = write(dir.path(), deep.as_bytes());
        let errors = [read_dataset(&file, Some("What?"), OnBad::Fail).err(), read_messages(&file).err()];
        for error in errors.map(|error| error.map(|error| error.to_string())) {
            assert!(error.as_ref().is_some_and(|said| said.contains("data.jsonl")), "{error:?}");
        }
    }
    survives(good_line().to_string().as_bytes());
}
