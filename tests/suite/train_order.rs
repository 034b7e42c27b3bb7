//! Which samples make a step, and which are picked for a smaller run.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use vlm::train::order::{Length, Order, Sequence, Spread, Step, pick};

const SHUFFLED: Sequence = Sequence::Shuffled { seed: 3 };

fn steps(n: usize, batch: usize, accumulation: usize, sequence: Sequence, length: Length) -> Vec<Step> {
    Order::new(n, batch, accumulation, sequence, length).unwrap().steps_after(0).collect()
}

#[test]
fn file_order_is_cut_into_short_last_batches_that_never_cross() {
    let steps = steps(7, 2, 2, Sequence::File, Length::Epochs(2));
    let got: Vec<_> =
        steps.into_iter().map(|s| (s.number, s.epoch, s.in_epoch, s.epochs_done, s.micro_batches)).collect();
    let (full, short) = (vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5], vec![6]]);
    let want =
        [(1, 0, 0, 0.5, full.clone()), (2, 0, 1, 1.0, short.clone()), (3, 1, 0, 1.5, full), (4, 1, 1, 2.0, short)];
    assert_eq!(got, want);
}

#[test]
fn steps_may_end_within_an_epoch_or_go_over_many() {
    let few = steps(10, 4, 1, SHUFFLED, Length::Steps(2));
    assert_eq!(few.iter().map(Step::n_samples).collect::<Vec<_>>(), [4, 4]);
    let many = steps(10, 4, 1, SHUFFLED, Length::Steps(7));
    assert_eq!(many.iter().map(Step::n_samples).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2, 4]);
    assert_eq!(many[..2], few[..]);
}

/// What is counted without walking is what one finds walking.
#[test]
fn passes_and_batches_are_those_of_the_steps() {
    for (n, batch, accumulation) in [(7, 2, 2), (1, 4, 1), (10, 4, 1), (12, 3, 2)] {
        for length in [Length::Steps(1), Length::Steps(5), Length::Steps(17), Length::Epochs(4)] {
            let order = Order::new(n, batch, accumulation, SHUFFLED, length).unwrap();
            let batches: Vec<Vec<usize>> = order.steps_after(0).flat_map(|step| step.micro_batches).collect();
            let passes = (0..n).map(|at| batches.iter().flatten().filter(|b| **b == at).count() as u64);
            assert_eq!(order.passes(), passes.collect::<Vec<_>>());
            assert_eq!(order.n_micro_batches(), batches.len() as u64);
        }
    }
    let long = Order::new(7, 2, 2, SHUFFLED, Length::Steps(u64::MAX)).unwrap();
    assert_eq!(long.n_micro_batches(), u64::MAX);
    assert_eq!(long.passes().iter().max(), Some(&(u64::MAX / 2 + 1)));
}

/// Pearson's statistic of where samples land over many epochs: 24 orders of 4 samples, 23 degrees of freedom, whose
/// 99.99 % point is 56.5 (scipy.stats.chi2.ppf).
#[test]
fn all_orders_are_equally_frequent() {
    let order = Order::new(4, 1, 1, SHUFFLED, Length::Epochs(1)).unwrap();
    let mut counts: BTreeMap<Vec<usize>, f64> = BTreeMap::new();
    const N: u64 = 24_000;
    for epoch in 0..N {
        *counts.entry(order.epoch(epoch)).or_default() += 1.0;
    }
    assert_eq!(counts.len(), 24);
    let want = N as f64 / 24.0;
    let statistic: f64 = counts.values().map(|n| (n - want).powi(2) / want).sum();
    assert!(statistic < 56.5, "{statistic}");
}

#[test]
fn seeds_and_epochs_give_other_orders_and_the_same_again() {
    let order =
        |seed, epoch| Order::new(50, 1, 1, Sequence::Shuffled { seed }, Length::Epochs(1)).unwrap().epoch(epoch);
    let orders: HashSet<Vec<usize>> = (0..5).flat_map(|seed| (0..5).map(move |epoch| order(seed, epoch))).collect();
    assert_eq!(orders.len(), 25);
    assert_eq!(order(1, 2), order(1, 2));
}

proptest! {
    #[test]
    fn an_epoch_is_every_sample_once_and_a_run_resumes_anywhere(
        n in 1..60_usize, batch in 1..9_usize, accumulation in 1..4_usize, epochs in 1..4_u64, done in 0..200_u64,
    ) {
        let order = Order::new(n, batch, accumulation, SHUFFLED, Length::Epochs(epochs)).unwrap();
        let all: Vec<Step> = order.steps_after(0).collect();
        prop_assert_eq!(all.len() as u64, order.total_steps());
        for epoch in 0..epochs {
            let of_epoch: Vec<&Step> = all.iter().filter(|s| s.epoch == epoch).collect();
            prop_assert_eq!(of_epoch.len() as u64, order.steps_per_epoch());
            let (last, full) = of_epoch.split_last().unwrap();
            prop_assert!(full.iter().all(|s| s.n_samples() == batch * accumulation));
            prop_assert!(last.micro_batches.iter().rev().skip(1).all(|b| b.len() == batch));
            let mut samples: Vec<usize> = of_epoch.iter().flat_map(|s| s.micro_batches.concat()).collect();
            prop_assert_eq!(&samples, &order.epoch(epoch));
            samples.sort_unstable();
            prop_assert_eq!(samples, (0..n).collect::<Vec<_>>());
        }
        let rest: Vec<Step> = order.steps_after(done).collect();
        prop_assert_eq!(&rest[..], all.get(done as usize..).unwrap_or_default());
    }

    #[test]
    fn picks_are_nested_and_apportioned_as_webster_does(
        sizes in prop::collection::vec(1..20_usize, 1..6), seed in 0..9_u64, part in 0.0..1.0_f64,
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let labels: Vec<Option<&str>> =
            sizes.iter().zip(names).flat_map(|(&n, name)| vec![Some(name); n]).collect();
        let n = ((labels.len() as f64 * part) as usize).max(1);
        let picked = pick(&labels, n, Spread::Stratified, seed, "--subset").unwrap();
        prop_assert_eq!(picked.len(), n);
        prop_assert!(picked.is_sorted() && picked.windows(2).all(|w| w[0] != w[1]));
        let larger = pick(&labels, (n + 7).min(labels.len()), Spread::Stratified, seed, "--subset").unwrap();
        prop_assert!(picked.iter().all(|i| larger.contains(i)));
        // What characterises the method (Balinski and Young): no seat would be better with another class, that is
        // (2 k_a - 1) / m_a <= (2 k_b + 1) / m_b for all classes a and b that have seats and members left.
        let count = |name| picked.iter().filter(|&&i| labels[i] == Some(name)).count();
        let seats: Vec<(usize, usize)> = sizes.iter().zip(names).map(|(&m, name)| (count(name), m)).collect();
        for &(a, of_a) in seats.iter().filter(|(a, _)| *a > 0) {
            for &(b, of_b) in seats.iter().filter(|(b, m)| b < m) {
                prop_assert!((2 * a - 1) * of_b <= (2 * b + 1) * of_a, "{seats:?}");
            }
        }
    }
}

#[test]
fn an_even_spread_takes_as_many_of_each_class_while_they_last() {
    let labels: Vec<Option<&str>> = [vec![Some("many"); 50], vec![Some("few"); 2], vec![None; 5]].concat();
    let picked = pick(&labels, 11, Spread::Even, 0, "--overfit").unwrap();
    let count = |label| picked.iter().filter(|&&i| labels[i] == label).count();
    assert_eq!([count(Some("many")), count(Some("few")), count(None)], [4, 2, 5]);
}

#[test]
fn picks_follow_the_seed() {
    let labels = vec![Some("x"); 100];
    let picks: BTreeSet<Vec<usize>> =
        (0..10).map(|seed| pick(&labels, 10, Spread::Stratified, seed, "--subset").unwrap()).collect();
    assert_eq!(picks.len(), 10);
}

#[test]
fn what_makes_no_run_is_said() {
    let error = |n, batch, accumulation, length| {
        Order::new(n, batch, accumulation, SHUFFLED, length).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(error(0, 1, 1, Length::Epochs(1)), "there are no samples to train on");
    for (batch, accumulation) in [(0, 1), (1, 0), (usize::MAX, 2)] {
        assert!(error(9, batch, accumulation, Length::Epochs(1)).starts_with("--batch-size times --grad-accumulation"));
    }
    for length in [Length::Epochs(0), Length::Steps(0), Length::Epochs(u64::MAX)] {
        assert_eq!(error(9, 4, 1, length), "wanted a run of 1 or more steps");
    }
    for n in [0, 3] {
        let error = pick(&[Some("a"), None], n, Spread::Even, 0, "--overfit").unwrap_err();
        assert!(error.is_usage());
        assert_eq!(error.to_string(), format!("--overfit {n}: wanted from 1 to 2, the number of samples"));
    }
}
