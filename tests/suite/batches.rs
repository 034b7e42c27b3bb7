//! What the engine does with several sequences and with its cache is what it does with one sequence from scratch.

use crate::commands::copy;
use crate::folders::change_tensors;
use crate::golden_cases::{Opened, floats, greedy, relative};
use vlm::base::Precision;
use vlm::infer::choices;
use vlm::infer::engine::{Answer, Engine, Read};
use vlm::infer::generate::{Finish, Settings, generate};
use vlm::infer::lists::{self, Labels};
use vlm::infer::trace;
use vlm::ops::sample::Choice;
use vlm::qwen3vl::model::{Rows, Sampling};
use vlm::qwen3vl::pack::Sequence;

const PROMPTS: [&str; 3] = ["one_image", "text_only", "turns"];

fn prompts(opened: &Opened) -> Vec<Sequence> {
    PROMPTS.iter().map(|case| opened.prompt(case)).collect()
}

/// Text of `n` made-up tokens.
pub fn text(n: usize) -> Sequence {
    let ids: Vec<u32> = (0..n as u32).map(|i| (i * i + 7 * i + 3) % 420).collect();
    Sequence { is_image: vec![false; n], ids, ..Sequence::default() }
}

/// The sequence with further text tokens.
fn followed(sequence: &Sequence, by: &[u32]) -> Sequence {
    let mut longer = sequence.clone();
    longer.ids.extend(by);
    longer.is_image.resize(longer.ids.len(), false);
    longer
}

/// All logits [T, V] of a sequence in one pass, without the cache: what the rest is compared with.
fn logits(engine: &mut Engine, sequence: &Sequence) -> Vec<Vec<f32>> {
    let tensors = trace::trace(engine, sequence, &mut |_, _| ()).unwrap();
    let (_, logits) = tensors.iter().find(|(name, _)| name == "logits").unwrap();
    floats(logits).chunks(logits.shape[1]).map(<[f32]>::to_vec).collect()
}

fn rows(answer: Answer) -> Vec<Vec<f32>> {
    match answer {
        Answer::Logits(rows) => rows,
        Answer::Tokens(_) => panic!("logits were asked for"),
    }
}

/// Sums in f32, of a few hundred terms, in another order.
const CLOSE: f64 = 1e-5;

fn assert_close(got: &[Vec<f32>], want: &[Vec<f32>], place: &str) {
    assert_eq!(got.len(), want.len(), "{place}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = relative(got, want);
        assert!(error <= CLOSE, "{place}, row {i}: {error:.2e}");
    }
}

#[test]
fn packed_prompts_are_as_each_alone() {
    for model in ["uneven", "single"] {
        let mut opened = Opened::golden(model, Precision::F32);
        let prompts = prompts(&opened);
        let engine = &mut opened.engine;
        let alone: Vec<_> = prompts.iter().map(|p| logits(engine, p)).collect();
        let all: Vec<&Sequence> = prompts.iter().collect();
        engine.reserve(prompts.iter().map(|p| p.ids.len())).unwrap();
        let (cached, answer) = engine.prefill(&all, Read::Logits(Rows::All), &mut |_, _| ()).unwrap();
        assert_close(&rows(answer), &alone.concat(), model);
        cached.into_iter().for_each(|c| engine.release(c));
        let (_, answer) = engine.prefill(&all, Read::Logits(Rows::Last), &mut |_, _| ()).unwrap();
        let last: Vec<_> = alone.iter().map(|a| a.last().unwrap().clone()).collect();
        assert_close(&rows(answer), &last, model);
    }
}

#[test]
fn batched_answers_are_as_each_alone_also_where_one_stops() {
    for model in ["uneven", "single"] {
        let mut opened = Opened::golden(model, Precision::F32);
        let (prompts, mut settings) = (prompts(&opened), greedy(&opened, 20));
        let mut run = |prompts: &[&Sequence], settings: &Settings| {
            let mut told = vec![Vec::new(); prompts.len()];
            let mut each = |at: usize, token| {
                told[at].push(token);
                true
            };
            let (answers, _) = generate(&mut opened.engine, prompts, settings, &mut |_, _| (), &mut each).unwrap();
            for (answer, told) in answers.iter().zip(&told) {
                assert_eq!(&answer.tokens, told);
            }
            answers
        };
        let free: Vec<_> = prompts.iter().map(|p| run(&[p], &settings).remove(0)).collect();
        assert!(free.iter().all(|a| a.tokens.len() == 20 && a.finish == Finish::Length));
        // the sixth token of the first answer, so that it at least leaves the batch early
        settings.stop = vec![free[0].tokens[5]];
        let alone: Vec<_> = prompts.iter().map(|p| run(&[p], &settings).remove(0)).collect();
        assert!(alone[0].tokens.len() <= 6 && alone[0].finish == Finish::Stop);
        assert_eq!(alone[0].tokens.last(), settings.stop.first(), "the stop token is part of the answer");
        let together = run(&prompts.iter().collect::<Vec<_>>(), &settings);
        for ((together, alone), case) in together.iter().zip(&alone).zip(PROMPTS) {
            assert_eq!((&together.tokens, together.finish), (&alone.tokens, alone.finish), "{model} {case}");
        }
        assert!(run(&[], &settings).is_empty());
        settings.max_new_tokens = 0;
        assert!(run(&[&prompts[0]], &settings)[0].tokens.is_empty());
    }
}

#[test]
fn an_answer_ends_where_the_listener_says_so() {
    let mut opened = Opened::golden("single", Precision::F32);
    let (prompt, settings) = (opened.prompt("text_only"), greedy(&opened, 20));
    let mut heard = 0;
    let mut each = |_, _| {
        heard += 1;
        heard < 3
    };
    let (answers, _) = generate(&mut opened.engine, &[&prompt], &settings, &mut |_, _| (), &mut each).unwrap();
    assert_eq!((answers[0].tokens.len(), heard), (3, 3));
}

/// Log-probability of `label` after `prompt`, from one pass over both.
fn score(engine: &mut Engine, prompt: &Sequence, label: &[u32]) -> f64 {
    let rows = logits(engine, &followed(prompt, label));
    let rows = &rows[prompt.ids.len() - 1..];
    let log_probability = |(row, token): (&Vec<f32>, &u32)| {
        let sum: f64 = row.iter().map(|x| (*x as f64).exp()).sum();
        row[*token as usize] as f64 - sum.ln()
    };
    rows.iter().zip(label).map(log_probability).sum()
}

fn assert_choices(opened: &mut Opened, prompts: &[Sequence], labels: &[Vec<u32>], closed: bool) {
    let close = opened.preparer.prompts.tokenizer().token_id("<|im_end|>").unwrap();
    let all: Vec<&Sequence> = prompts.iter().collect();
    let got = choices::score(&mut opened.engine, &all, labels, close, &mut |_, _| ()).unwrap();
    assert_eq!(got.len(), prompts.len());
    for (prompt, got) in prompts.iter().zip(got) {
        let whole = |l: &Vec<u32>| if closed { [l.as_slice(), &[close]].concat() } else { l.clone() };
        let scores: Vec<f64> = labels.iter().map(|l| score(&mut opened.engine, prompt, &whole(l))).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let want: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
        assert!((got.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        for (got, want) in got.iter().zip(&want) {
            // logits near 30 in size, off by 1e-5 of it, for each token of a label
            let bound = 1e-3 * want + 1e-12;
            assert!((got - want).abs() <= bound, "{} tokens: {got} and not {want}", prompt.ids.len());
        }
    }
}

#[test]
fn choices_are_the_models_own_probabilities() {
    for model in ["uneven", "single"] {
        let mut opened = Opened::golden(model, Precision::F32);
        let prompts = prompts(&opened);
        assert_choices(&mut opened, &prompts, &[vec![5], vec![9], vec![300]], false);
        assert_choices(&mut opened, &prompts, &[vec![5], vec![9, 17], vec![100, 101, 102]], false);
        // one begins the other: the closing token counts for all
        assert_choices(&mut opened, &prompts, &[vec![5], vec![5, 9], vec![100, 101, 102]], true);
        assert_choices(&mut opened, &prompts[1..2], &[vec![7, 8]], false);
    }
}

#[test]
fn labels_that_cross_the_blocks_of_the_cache() {
    let mut opened = Opened::golden("single", Precision::F32);
    let long: Vec<u32> = (0..70).map(|i| 3 + i * 5).collect();
    for n in [1, 62, 63, 64, 65, 127, 128, 129] {
        let prompts = [text(n), text(n + 1)];
        assert_choices(&mut opened, &prompts, &[vec![9, 17, 4], vec![9, 17, 4, 8], vec![200; 5]], true);
        assert_choices(&mut opened, &prompts[..1], &[long.clone(), vec![7, 7]], false);
    }
}

#[test]
fn choices_that_cannot_be_scored() {
    let mut opened = Opened::golden("single", Precision::F32);
    let prompt = text(4);
    let mut fails = |labels: &[Vec<u32>]| {
        choices::score(&mut opened.engine, &[&prompt], labels, 421, &mut |_, _| ()).unwrap_err().to_string()
    };
    assert!(fails(&[vec![1], vec![]]).contains("label 2 of the choices is empty"));
    assert!(fails(&[vec![1], vec![2, 512]]).contains("token 512"));
}

/// A NaN in the weights makes every logit one: probabilities of that would be written as null, and read back by nobody.
#[test]
fn logits_that_are_no_numbers_are_refused() {
    let dir = copy("single");
    change_tensors(&dir.path().join("model.safetensors"), |tensors| {
        let norm = tensors.iter_mut().find(|t| t.name == "model.language_model.norm.weight").unwrap();
        norm.bytes[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    let mut opened = Opened::new(dir.path(), None, Precision::F32);
    let (prompt, engine) = (text(4), &mut opened.engine);
    let wanted = format!(
        "{}: tensor model.language_model.norm.weight: it holds NaN, and nothing can be computed with that: copy or make the \
         file again",
        dir.path().join("model.safetensors").display()
    );
    for labels in [vec![vec![5], vec![9]], vec![vec![5, 6], vec![9]]] {
        let error = choices::score(engine, &[&prompt], &labels, 421, &mut |_, _| ()).unwrap_err();
        assert_eq!(error.to_string(), wanted);
    }
    let labels = Labels { first: vec![vec![70], vec![90]], later: vec![vec![11, 70], vec![11, 90]], close: 421 };
    assert_eq!(lists::list(engine, &[&prompt], &labels).unwrap_err().to_string(), wanted);
    assert_eq!([choices::likeliest(&[0.25, 0.5, 0.5]), choices::likeliest(&[1.0])], [1, 0]);
}

/// Infinities too, in answers as in scores; and where every weight is a number it is said how to go on.
#[test]
fn infinite_logits_are_refused_in_written_answers() {
    let answer = |of: &str, change: &dyn Fn(&mut [u8])| {
        let dir = copy("single");
        change_tensors(&dir.path().join("model.safetensors"), |tensors| {
            change(&mut tensors.iter_mut().find(|t| t.name == of).unwrap().bytes);
        });
        let mut opened = Opened::new(dir.path(), None, Precision::F32);
        let (settings, prompt) = (greedy(&opened, 2), opened.prompt("text_only"));
        let answer = generate(&mut opened.engine, &[&prompt], &settings, &mut |_, _| (), &mut |_, _| true);
        answer.unwrap_err().to_string()
    };
    // bf16: an infinity of either sign in two rows of the head, so that one of two logits is plus infinity
    let said = answer("lm_head.weight", &|bytes| {
        for (row, infinity) in [(7, [0x80, 0x7f]), (8, [0x80, 0xff])] {
            bytes[row * 104..row * 104 + 2].copy_from_slice(&infinity);
        }
    });
    assert!(said.contains("model.safetensors: tensor lm_head.weight: it holds inf, and nothing"), "{said}");
    let said = answer("model.language_model.norm.weight", &|bytes| {
        bytes.chunks_mut(2).for_each(|x| x.copy_from_slice(&[0x7f, 0x7f]));
    });
    let wanted =
        ["sample: logits: wanted numbers, got NaN or inf in row 0: the model's files hold numbers only", "vlm dump"];
    assert!(wanted.iter().all(|w| said.contains(w)), "{said}");
}

#[test]
fn forks_share_what_they_have_in_common_and_write_apart() {
    for n in [1, 60, 64, 100] {
        let mut opened = Opened::golden("uneven", Precision::F32);
        let engine = &mut opened.engine;
        let prompt = text(n);
        let tails: [Vec<u32>; 3] = [vec![11, 12, 13, 14, 15, 16], vec![21, 22, 23, 24, 25, 26], vec![31; 6]];
        let want: Vec<_> = tails.iter().map(|t| logits(engine, &followed(&prompt, t))[n..].to_vec()).collect();
        engine.reserve(std::iter::repeat_n(n + 70, 3)).unwrap();
        let (mut cached, _) = engine.prefill(&[&prompt], Read::Logits(Rows::Last), &mut |_, _| ()).unwrap();
        let first = cached.remove(0);
        let mut sequences = [engine.fork(&first).unwrap(), engine.fork(&first).unwrap(), first];
        assert_eq!(sequences[0].blocks(), sequences[2].blocks(), "nothing is copied before it is written");
        // token by token, in turns, so that a block that two of them write would show
        let mut got = [vec![], vec![], vec![]];
        for step in 0..6 {
            for (i, sequence) in sequences.iter_mut().enumerate() {
                let answer =
                    engine.extend(&mut [sequence], &[&tails[i][step..=step]], Read::Logits(Rows::All)).unwrap();
                got[i].extend(rows(answer));
            }
        }
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_close(got, want, &format!("{n} tokens, fork {i}"));
        }
        let whole = n / 64;
        let blocks: Vec<_> = sequences.iter().map(|s| s.blocks().to_vec()).collect();
        assert_eq!(blocks[0][..whole], blocks[1][..whole], "whole blocks stay shared");
        assert_ne!(blocks[0][whole], blocks[1][whole]);
        sequences.into_iter().for_each(|s| engine.release(s));
        // everything came back: the same room takes three new prompts
        let three = [&text(n + 70), &text(n + 69), &text(n + 68)];
        assert!(engine.prefill(&three, Read::Logits(Rows::Last), &mut |_, _| ()).is_ok());
    }
}

#[test]
fn more_tokens_than_were_reserved_are_refused() {
    let mut opened = Opened::golden("single", Precision::F32);
    let engine = &mut opened.engine;
    let error = engine.prefill(&[&text(3)], Read::Logits(Rows::Last), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("a reserved cache"), "{error}");
    engine.reserve([10]).unwrap();
    let error = engine.prefill(&[&text(65)], Read::Logits(Rows::Last), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("more tokens than were reserved"), "{error}");
}

#[test]
fn sampling_follows_the_seed_and_keeps_to_ids_with_text() {
    let mut opened = Opened::golden("single", Precision::F32);
    let prompt = opened.prompt("one_image");
    let hot = Choice { temperature: Some(50.0), ..Choice::GREEDY };
    let mut run = |seed: u64, n_valid: usize| {
        let settings = Settings { choice: hot, seed, max_new_tokens: 40, stop: Vec::new(), n_valid };
        let batch = [&prompt, &prompt];
        let (answers, _) = generate(&mut opened.engine, &batch, &settings, &mut |_, _| (), &mut |_, _| true).unwrap();
        answers.into_iter().map(|a| a.tokens).collect::<Vec<_>>()
    };
    let first = run(1, 435);
    assert_eq!(first, run(1, 435));
    assert_ne!(first, run(2, 435));
    assert_ne!(first[0], first[1], "each sequence of a batch has random numbers of its own");
    for n_valid in [1, 20, 435] {
        let tokens = run(3, n_valid).concat();
        assert!(tokens.iter().all(|t| (*t as usize) < n_valid), "{n_valid}: {tokens:?}");
    }
    // at this temperature 80 draws of 435 nearly equal tokens repeat few
    let mut distinct = run(4, 435).concat();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 50, "{}", distinct.len());
}

#[test]
fn penalties_see_prompt_and_answer() {
    let mut opened = Opened::golden("single", Precision::F32);
    let prompt = opened.prompt("text_only");
    let engine = &mut opened.engine;
    let mut row = logits(engine, &prompt).pop().unwrap();
    row.truncate(435);
    // a presence penalty on one generated token, large enough to take its place: the greedy choice moves to the next
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    let choice = Choice { presence_penalty: 1e6, ..Choice::GREEDY };
    let mut ask = |answer_begins: usize| {
        let sampling = Sampling {
            choice,
            n_valid: 435,
            seen: vec![[prompt.ids.as_slice(), &[order[0] as u32]].concat()],
            answers: vec![answer_begins],
            uniform: vec![0.0],
            capacity: prompt.ids.len() + 2,
        };
        engine.reserve([prompt.ids.len()]).unwrap();
        match engine.prefill(&[&prompt], Read::Tokens(&sampling), &mut |_, _| ()).unwrap().1 {
            Answer::Tokens(tokens) => tokens[0] as usize,
            Answer::Logits(_) => panic!("tokens were asked for"),
        }
    };
    assert_eq!(ask(prompt.ids.len()), order[1]);
    assert_eq!(ask(prompt.ids.len() + 1), order[0], "the answer alone counts");
}

/// The log-probabilities of what follows a sequence, by one pass over all of it.
fn next(engine: &mut Engine, sequence: &Sequence) -> Vec<f64> {
    let row = logits(engine, sequence).pop().unwrap();
    let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
    row.iter().map(|l| f64::from(*l) - sum.ln()).collect()
}

/// Lists against the formula of `infer::lists`, every probability from a pass of its own over the whole text: no cache,
/// no forks, no batch. The labels have one token and two, and one begins another.
#[test]
fn lists_are_as_passes_over_the_whole_text_say() {
    let (comma, close) = (11, 421);
    let first = vec![vec![70, 31], vec![90], vec![70, 31, 8]];
    let later: Vec<Vec<u32>> = first.iter().map(|l| [&[comma], &l[..]].concat()).collect();
    let labels = Labels { first, later, close };
    for model in ["uneven", "single"] {
        let mut opened = Opened::golden(model, Precision::F32);
        let prompts = prompts(&opened);
        let engine = &mut opened.engine;
        let got = lists::list(engine, &prompts.iter().collect::<Vec<_>>(), &labels).unwrap();
        for (i, prompt) in prompts.iter().enumerate() {
            let (mut text, mut named, mut absent) = (prompt.clone(), Vec::new(), [1.0; 3]);
            while named.len() < 3 {
                let tokens = if named.is_empty() { &labels.first } else { &labels.later };
                let mut scores = Vec::new();
                for c in (0..3).filter(|c| !named.contains(c)) {
                    let (mut longer, mut score) = (text.clone(), 0.0);
                    for token in &tokens[c] {
                        score += next(engine, &longer)[*token as usize];
                        longer = followed(&longer, &[*token]);
                    }
                    let after = next(engine, &longer);
                    score += (after[close as usize].exp() + after[comma as usize].exp()).ln();
                    scores.push((Some(c), score));
                }
                if !named.is_empty() {
                    scores.push((None, next(engine, &text)[close as usize]));
                }
                let sum: f64 = scores.iter().map(|(_, s)| s.exp()).sum();
                scores.iter().for_each(|(c, s)| _ = c.map(|c| absent[c] *= 1.0 - s.exp() / sum));
                let best = scores.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
                let Some(c) = best else { break };
                named.push(c);
                text = followed(&text, &tokens[c]);
            }
            let place = format!("{model}, prompt {i}");
            assert_eq!(got[i].named, named, "{place}");
            for (got, absent) in got[i].probabilities.iter().zip(absent) {
                assert!((got - (1.0 - absent)).abs() <= 1e-4, "{place}: {got} {}", 1.0 - absent);
            }
        }
        let broken = Labels { first: vec![vec![]], later: vec![vec![comma]], close };
        assert!(lists::list(engine, &[&prompts[0]], &broken).unwrap_err().to_string().contains("no token"));
    }
}
