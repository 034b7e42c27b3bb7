//! Chat templates that fail: what would take the stack or the memory ends in a sentence, and sentences have one line.

use crate::prompt::{folder_with, golden};
use vlm::data::messages::{Conversation, Message, Role};
use vlm::qwen3vl::template::{ChatTemplate, Ending};

fn render(template: &ChatTemplate, roles: &[Role]) -> Result<String, String> {
    let messages = roles.iter().map(|role| Message::text(*role, "x")).collect();
    template.render(&Conversation { messages, tools: None }, Ending::GenerationPrompt).map_err(|e| e.to_string())
}

fn printed(template: &str) -> Result<String, String> {
    let folder = folder_with(template);
    let template = ChatTemplate::from_folder(folder.path()).map_err(|e| e.to_string())?;
    render(&template, &[Role::User])
}

const ENDLESS: &str = "the chat template failed on messages by user: not done after 10000000 steps or 640.00 MB of text; \
                       does a loop in it end?";

#[test]
fn values_without_end_are_no_json() {
    let nested = |n: usize| {
        printed(&format!(
            "{{% set ns = namespace(a=1) %}}{{% for i in range({n}) %}}{{% set ns.a = [ns.a] %}}{{% endfor %}}\
             {{{{ ns.a|tojson }}}}"
        ))
    };
    assert_eq!(nested(500).unwrap(), format!("{}1{}", "[".repeat(500), "]".repeat(500)));
    let deep = "tojson of a value nested more than 500 deep";
    assert!(nested(501).unwrap_err().ends_with(deep));
    for template in [
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns|tojson }}",
        "{% set ns = namespace() %}{% set ns.a = [{'b': ns}] %}{{ ns|tojson(sort_keys=true) }}",
    ] {
        assert!(printed(template).unwrap_err().ends_with(deep), "{template}");
    }
    // small, and a million million items when it is written
    let shared = "{% set ns = namespace(a=1) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}\
                  {{ ns.a|tojson }}";
    assert!(printed(shared).unwrap_err().ends_with(ENDLESS));
    for indent in ["10**9", "10**18"] {
        let said = printed(&format!("{{{{ [1]|tojson(indent={indent}) }}}}")).unwrap_err();
        assert!(said.ends_with(ENDLESS), "{indent}: {said}");
    }
}

#[test]
fn texts_without_end_are_not_made() {
    for template in [
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{0:}^+#09999999999,.2f}{{}}'.format(1) }}",
        "{{ '{a[:]:{<9999999999}'.format(a={':': 1}) }}",
        "{{ '{{{:.9999999999f}}}'.format(1.5) }}",
        "{{ '%9999999999d'|format(1) }}",
        "{{ 'a\nb'|indent(9999999999) }}",
        "{{ [1]|batch(10**10, 1)|list }}",
        "{{ [1]|slice(10**10)|list }}",
        "{{ ('a' * 10**6)|replace('a', 'a' * 10**6) }}",
        "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}",
        "{{ 'a' * 10**9 }}",
        "{{ (['a' * 10**6] * 10000)|join }}",
        "{{ ''.join(['a' * 10**6] * 10000) }}",
        "{% set ns = namespace(a='aaaa') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    ] {
        let said = printed(template).unwrap_err();
        assert!(said.ends_with(ENDLESS), "{template}: {said}");
    }
    assert!(printed("{{ range(10**10)|list }}").unwrap_err().ends_with("range has too many elements"));
}

/// Against Python 3.11.
#[test]
fn what_ends_is_made_as_python_makes_it() {
    for (template, wanted) in [
        ("{{ '{:>5}|{:.2f}|{{\"a\": 5551234567}}'.format('a', 1.5) }}", "    a|1.50|{\"a\": 5551234567}"),
        ("{{ ['a', 'b', 1]|join(', ') }}{{ [{'a': 'x'}, {'a': 'y'}]|join('-', attribute='a') }}", "a, b, 1x-y"),
        ("{{ ', '.join(['a', 'b']) }}{{ ''.join('ab') }}{{ 'ab'|join('-') }}", "a, baba-b"),
        ("{{ {2: 'x', 2.5: [], true: {}, none: 1e16}|tojson }}", r#"{"2": "x", "2.5": [], "true": {}, "null": 1e+16}"#),
        (
            "{{ {'b': [1, {}], 'a': 'é\"'}|tojson(indent=1, sort_keys=true) }}",
            "{\n \"a\": \"é\\\"\",\n \"b\": [\n  1,\n  {}\n ]\n}",
        ),
    ] {
        assert_eq!(printed(template).unwrap(), wanted, "{template}");
    }
}

#[test]
fn a_failure_names_the_roles_on_one_line() {
    let folder = folder_with(r"{{ raise_exception('\u001b[31ma\nb' ~ 'c' * 3) }}");
    let template = ChatTemplate::from_folder(folder.path()).unwrap();
    let said = render(&template, &[Role::System, Role::Assistant, Role::User]).unwrap_err();
    let (_, said) = said.split_once("line 1: ").unwrap();
    let wanted = r"the chat template failed on messages by system, assistant, user: \u001b[31ma\nbccc";
    assert!(said.starts_with(wanted), "{said}");
    let said = render(&ChatTemplate::from_folder(&golden()).unwrap(), &[]).unwrap_err();
    let wanted = "failed on no messages (nothing comes before the answer; begin with what a user says): `messages[0]";
    assert!(said.contains(wanted) && said.contains("is undefined"), "{said}");
}
