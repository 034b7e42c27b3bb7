//! A labelled set cut into training, validation and test, class by class, groups of near-duplicates on one side.
//!
//! Where a photo goes follows from its content and the seed alone: each has a number from 0 to 1, and of each class the
//! lowest are the test set, the next the validation set. So a set that has grown keeps nearly all of its photos where
//! they were: only at the borders some move.

use crate::base::rng::Stream;
use crate::base::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// Keeps these random numbers apart from others of the same seed.
const SPLIT: u64 = 0x7370_6c69;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Of all samples, from 0 to 1.
    Share(f64),
    Count(usize),
}

/// How much goes where. Where nothing is said at all 0.8, 0.1 and 0.1; else train gets what is left, and the others none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sizes {
    pub train: Option<Amount>,
    pub validation: Option<Amount>,
    pub test: Option<Amount>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Train, Part::Validation, Part::Test];

    /// Of its file.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
        }
    }
}

/// A sample to be put somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    pub label: Option<&'a str>,
    /// A hash of its content.
    pub content: [u8; 32],
    /// Items of the same group go to the same part.
    pub group: usize,
}

/// The part of each item; None where the counts leave it out.
///
/// Each class is shared out in proportion (largest remainders), so that classes are off by at most one sample and the
/// sum by none, as long as groups are small beside the parts: a group that fits no part's rest goes to train. Errors
/// (wrong usage): no items; a share outside 0 to 1; more asked for than there is.
pub fn split(items: &[Item], sizes: &Sizes, seed: u64) -> Result<Vec<Option<Part>>> {
    let wanted = counts(sizes, items.len())?;
    let mut classes: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    items.iter().for_each(|item| *classes.entry(item.label).or_default() += 1);
    let class_of: HashMap<Option<&str>, usize> = classes.keys().enumerate().map(|(i, l)| (*l, i)).collect();
    let mut left: Vec<usize> = classes.values().copied().collect();
    // rooms[part][class]; what is rare goes first
    let mut rooms: [Vec<usize>; 3] = Default::default();
    for part in [Part::Test, Part::Validation, Part::Train] {
        let quota = apportion(&left, wanted[part as usize]);
        left.iter_mut().zip(&quota).for_each(|(left, quota)| *left -= quota);
        rooms[part as usize] = quota;
    }

    // two independent numbers of an item
    let numbers = |item: &Item| {
        let words = item.content.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        let stream = Stream::new(seed, &std::iter::once(SPLIT).chain(words).collect::<Vec<_>>());
        [0, 2].map(|i| u64::from(stream.bits(i)) << 32 | u64::from(stream.bits(i + 1)))
    };
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    items.iter().enumerate().for_each(|(i, item)| groups.entry(item.group).or_default().push(i));
    // a group's place is the second number of its first item: the least of many first numbers would be low
    let mut units: Vec<(u64, Vec<usize>)> = groups
        .into_values()
        .map(|members| match members[..] {
            [one] => (numbers(&items[one])[0], members),
            _ => (members.iter().map(|i| numbers(&items[*i])).min().map_or(0, |[_, second]| second), members),
        })
        .collect();
    // groups while there is room for them, then the many that fit anywhere
    units.sort_by_key(|(place, members)| (members.len() == 1, *place));

    let share = |n: usize| n as f64 / items.len() as f64;
    let (test, validation) = (share(wanted[Part::Test as usize]), share(wanted[Part::Validation as usize]));
    let all_used = wanted.iter().sum::<usize>() == items.len();
    let mut parts = vec![None; items.len()];
    for (place, members) in units {
        let at = place as f64 / u64::MAX as f64;
        let order = match members.len() {
            1 => [Part::Test, Part::Validation, Part::Train],
            _ if at < test => [Part::Test, Part::Train, Part::Validation],
            _ if at < test + validation => [Part::Validation, Part::Train, Part::Test],
            _ => [Part::Train, Part::Test, Part::Validation],
        };
        let mut need = vec![0; classes.len()];
        members.iter().for_each(|i| need[class_of[&items[*i].label]] += 1);
        let fits = |part: &Part| rooms[*part as usize].iter().zip(&need).all(|(room, need)| room >= need);
        let part = order.into_iter().find(fits);
        if let Some(part) = part {
            rooms[part as usize].iter_mut().zip(&need).for_each(|(room, need)| *room -= need);
        }
        let part = part.or(all_used.then_some(Part::Train));
        members.iter().for_each(|i| parts[*i] = part);
    }
    Ok(parts)
}

/// Samples of train, validation and test, of `n`.
fn counts(sizes: &Sizes, n: usize) -> Result<[usize; 3]> {
    let usage = |said: String| Err(Error::Usage(said));
    if n == 0 {
        return usage("there are no samples to split".into());
    }
    let Sizes { mut train, mut validation, mut test } = *sizes;
    if (train, validation, test) == (None, None, None) {
        (train, validation, test) = (None, Some(Amount::Share(0.1)), Some(Amount::Share(0.1)));
    }
    let mut shares = 0.0;
    let mut count = |name: &str, amount: Option<Amount>| match amount {
        None => Ok(0),
        Some(Amount::Count(count)) => Ok(count),
        Some(Amount::Share(share)) if (0.0..=1.0).contains(&share) => {
            shares += share;
            Ok((share * n as f64).round() as usize)
        }
        Some(Amount::Share(share)) => {
            Err(Error::Usage(format!("--{name} {share}: wanted a share from 0.0 to 1.0, or a whole number of samples")))
        }
    };
    let mut wanted = [count("train", train)?, count("validation", validation)?, count("test", test)?];
    let others = wanted[1].saturating_add(wanted[2]);
    // shares that add up to all are all, however they round
    let rest = train.is_none() || (matches!(train, Some(Amount::Share(_))) && (shares - 1.0).abs() < 1e-9);
    if rest && others <= n {
        wanted[0] = n - others;
    }
    let sum: u128 = wanted.iter().map(|n| *n as u128).sum();
    if sum == 0 {
        return usage(format!("train, validation and test ask for no sample at all, and the set has {n}"));
    }
    if sum > n as u128 {
        return usage(format!(
            "train, validation and test ask for {}, {} and {} samples, {sum} in all, and the set has {n}",
            wanted[0], wanted[1], wanted[2]
        ));
    }
    Ok(wanted)
}

/// `total` shared out in proportion to `counts`, never more than there is of one: largest remainders (Hamilton).
fn apportion(counts: &[usize], total: usize) -> Vec<usize> {
    let all: usize = counts.iter().sum();
    if all == 0 {
        return vec![0; counts.len()];
    }
    let total = total.min(all);
    let product = |n: usize| n as u128 * total as u128;
    let mut quota: Vec<usize> = counts.iter().map(|n| (product(*n) / all as u128) as usize).collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(product(counts[*i]) % all as u128));
    let missing = total - quota.iter().sum::<usize>();
    order.into_iter().take(missing).for_each(|i| quota[i] += 1);
    quota
}
