//! Argument structs lie in memory as the kernels declare them.

use vlm::device::{Arguments, CastArgs, StructLayout, emulated};
use vlm::ops::{attention, attention_cached, norm, qk_rope};

/// Every argument struct of the program.
fn structs() -> Vec<StructLayout> {
    vec![
        CastArgs::layout(),
        attention::AttentionArgs::layout(),
        attention::AttentionBackwardArgs::layout(),
        attention::AttentionSm90Args::layout(),
        attention_cached::AttentionCachedArgs::layout(),
        norm::NormArgs::layout(),
        norm::NormBackwardArgs::layout(),
        qk_rope::QkRopeArgs::layout(),
        qk_rope::QkRopeBackwardArgs::layout(),
    ]
}

#[test]
fn rust_and_the_kernels_agree() {
    let declared = emulated::layouts().expect("an emulator");
    for ours in structs() {
        let theirs = declared.iter().find(|l| l.name == ours.name);
        assert_eq!(Some(&ours), theirs, "{} in cuda/", ours.name);
    }
    let all: Vec<String> = structs().into_iter().map(|s| s.name).collect();
    let others = declared.iter().filter(|l| !all.contains(&l.name) && !l.name.starts_with("Conformance"));
    let others: Vec<&str> = others.map(|l| l.name.as_str()).collect();
    assert!(others.is_empty(), "structs of cuda/ that this test does not compare: {others:?}");
}
