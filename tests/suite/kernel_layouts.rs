//! Argument structs lie in memory as the kernels declare them.

use vlm::device::{Arguments, CastArgs, StructLayout, emulated};
use vlm::ops::linear::arguments as linear;
use vlm::ops::{
    adamw, attention, attention_cached, deepstack_add, embed, grad_norm, linear_loss, norm, patch_embed, qk_rope,
    sample, swiglu,
};

/// Every argument struct of the program.
fn structs() -> Vec<StructLayout> {
    vec![
        adamw::AdamWArgs::layout(),
        attention::AttentionArgs::layout(),
        attention::AttentionBackwardArgs::layout(),
        attention::AttentionBackwardSm90Args::layout(),
        attention::AttentionSm90Args::layout(),
        attention_cached::AttentionCachedArgs::layout(),
        CastArgs::layout(),
        deepstack_add::DeepstackAddArgs::layout(),
        embed::EmbedArgs::layout(),
        embed::EmbedBackwardArgs::layout(),
        grad_norm::GradNormArgs::layout(),
        linear::LinearActivationArgs::layout(),
        linear::LinearArgs::layout(),
        linear::LinearBand::layout(),
        linear::LinearBiasArgs::layout(),
        linear::LinearDropout::layout(),
        linear::LinearFewArgs::layout(),
        linear::LinearGatedArgs::layout(),
        linear::LinearGradientArgs::layout(),
        linear::LinearGradientBand::layout(),
        linear::LinearGradientSm90Args::layout(),
        linear::LinearGradientSumArgs::layout(),
        linear::LinearNarrowArgs::layout(),
        linear::LinearPiece::layout(),
        linear::LinearRowsArgs::layout(),
        linear::LinearSm90Args::layout(),
        linear_loss::LinearLossArgs::layout(),
        linear_loss::LinearLossGradientArgs::layout(),
        linear_loss::LinearLossRowsArgs::layout(),
        linear_loss::LinearLossSm90Args::layout(),
        norm::NormArgs::layout(),
        norm::NormBackwardArgs::layout(),
        patch_embed::PatchEmbedArgs::layout(),
        patch_embed::PatchEmbedTableArgs::layout(),
        qk_rope::QkRopeArgs::layout(),
        qk_rope::QkRopeBackwardArgs::layout(),
        sample::SampleArgs::layout(),
        swiglu::SwigluArgs::layout(),
        swiglu::SwigluBackwardArgs::layout(),
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
