//! Random numbers as a pure function of (seed, stream ids, element): Philox4x32-10.
//!
//! J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter-based generator has no
//! state, so any element can be made anywhere (another thread, the GPU, a resumed run) with the same result.
//! The logarithm, sine and cosine below use only f64 add, multiply, divide and square root, each of which IEEE 754
//! rounds in one way: a device that computes them without contraction gets the same bits.

use multiversion::multiversion;

/// Philox4x32-10 of a 128-bit counter under a 64-bit key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    rounds(counter.map(|word| [word]), key).map(|[word]| word)
}

/// The ten rounds on N counters side by side: word w of counter i is `c[w][i]`.
#[inline(always)]
fn rounds<const N: usize>(counters: [[u32; N]; 4], [mut k0, mut k1]: [u32; 2]) -> [[u32; N]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counters;
    for _ in 0..10 {
        for i in 0..N {
            let p0 = u64::from(c0[i]) * 0xD251_1F53;
            let p1 = u64::from(c2[i]) * 0xCD9E_8D57;
            c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = p1 as u32;
            c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// An endless sequence of random elements, found by number and not by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    /// The stream of `seed` and `ids` (step, sample, module …). Each id is folded into the key with one Philox
    /// block; the third counter word tells such a block (1) from those of elements (0).
    pub fn new(seed: u64, ids: &[u64]) -> Self {
        ids.iter().fold(Stream { key: halves(seed) }, |stream, id| stream.with(*id))
    }

    /// The stream of one more id: `Stream::new(seed, ids).with(id)` is `Stream::new(seed, ids and id)`.
    pub fn with(self, id: u64) -> Self {
        let [low, high] = halves(id);
        let [k0, k1, _, _] = philox([low, high, 1, 0], self.key);
        Stream { key: [k0, k1] }
    }

    /// The stream as two words, to be kept in a tensor.
    pub fn key(self) -> [u32; 2] {
        self.key
    }

    /// The stream of [`Stream::key`].
    pub fn of_key(key: [u32; 2]) -> Self {
        Stream { key }
    }

    /// 32 random bits: element `i` is lane i mod 4 of block i / 4.
    #[inline]
    pub fn bits(self, i: u64) -> u32 {
        let [low, high] = halves(i / 4);
        philox([low, high, 0, 0], self.key)[(i % 4) as usize]
    }

    /// `out[j] = self.bits(j)`, several times faster.
    pub fn fill_bits(self, out: &mut [u32]) {
        fill_words(self.key, out);
    }

    /// Uniform in [0, 1), a multiple of 2^-24: the upper bits of [`Stream::bits`].
    #[inline]
    pub fn uniform(self, i: u64) -> f32 {
        (self.bits(i) >> 8) as f32 / (1 << 24) as f32
    }

    /// Standard normal by Box and Muller, in f64, rounded once. Elements 2k and 2k + 1 are the cosine and the sine
    /// of one pair of words, so |x| is at most 6.7.
    pub fn normal(self, i: u64) -> f32 {
        let [low, high] = halves(i / 4);
        normals(philox([low, high, 0, 0], self.key))[(i % 4) as usize]
    }

    /// `out[j] = self.normal(first + j)`, several times faster.
    pub fn fill_normal(self, first: u64, out: &mut [f32]) {
        let head = ((4 - first % 4) % 4).min(out.len() as u64) as usize;
        let (head, body) = out.split_at_mut(head);
        for (i, x) in (first..).zip(head) {
            *x = self.normal(i);
        }
        fill_blocks(self.key, first.div_ceil(4), body);
    }
}

/// A name as an id of a stream.
pub fn id(name: &str) -> u64 {
    name.bytes().fold(0, |h: u64, b| h.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b))
}

/// A stream read in order, for code whose choices follow one another.
#[derive(Debug, Clone)]
pub struct Dice {
    stream: Stream,
    next: u64,
}

impl Dice {
    pub fn new(seed: u64, ids: &[u64]) -> Dice {
        Dice { stream: Stream::new(seed, ids), next: 0 }
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        self.next += 1;
        low + (high - low) * self.stream.uniform(self.next - 1)
    }

    /// Uniform among 0 to n - 1, uneven by n / 2^32; 0 where n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        ((u64::from(self.stream.bits(self.next - 1)) * n as u64) >> 32) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.between(0.0, 1.0) < p
    }
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Blocks computed side by side, so that the compiler makes vector code of them.
const LANES: usize = 16;

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn fill_blocks(key: [u32; 2], first_block: u64, out: &mut [f32]) {
    let mut block = first_block;
    for piece in out.chunks_mut(4 * LANES) {
        let mut low = [0; LANES];
        let mut high = [0; LANES];
        for lane in 0..LANES {
            [low[lane], high[lane]] = halves(block.wrapping_add(lane as u64));
        }
        let words = rounds([low, high, [0; LANES], [0; LANES]], key);
        let (mut cosines, mut sines) = ([[0.0; LANES]; 2], [[0.0; LANES]; 2]);
        for pair in 0..2 {
            for lane in 0..LANES {
                [cosines[pair][lane], sines[pair][lane]] = box_muller(words[2 * pair][lane], words[2 * pair + 1][lane]);
            }
        }
        let mut values = [0.0; 4 * LANES];
        for lane in 0..LANES {
            for pair in 0..2 {
                values[4 * lane + 2 * pair] = cosines[pair][lane];
                values[4 * lane + 2 * pair + 1] = sines[pair][lane];
            }
        }
        piece.copy_from_slice(&values[..piece.len()]);
        block = block.wrapping_add(LANES as u64);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn fill_words(key: [u32; 2], out: &mut [u32]) {
    for (block, piece) in (0..).step_by(LANES).zip(out.chunks_mut(4 * LANES)) {
        let mut low = [0; LANES];
        let mut high = [0; LANES];
        for lane in 0..LANES {
            [low[lane], high[lane]] = halves(block + lane as u64);
        }
        let words = rounds([low, high, [0; LANES], [0; LANES]], key);
        for (i, out) in piece.iter_mut().enumerate() {
            *out = words[i % 4][i / 4];
        }
    }
}

#[inline(always)]
fn normals(words: [u32; 4]) -> [f32; 4] {
    let [a, b] = box_muller(words[0], words[1]);
    let [c, d] = box_muller(words[2], words[3]);
    [a, b, c, d]
}

/// Two normals from u = (w0 + 1/2) / 2^32 and the angle 2 pi w1 / 2^32.
#[inline(always)]
fn box_muller(w0: u32, w1: u32) -> [f32; 2] {
    let u = (f64::from(w0) + 0.5) * (1.0 / 4_294_967_296.0);
    let radius = (-2.0 * ln(u)).sqrt();
    let (sin, cos) = sin_cos_turn(w1);
    [(radius * cos) as f32, (radius * sin) as f32]
}

/// Natural logarithm of a positive normal number, to 1e-15: x = m 2^e with m in [sqrt(1/2), sqrt(2)), and
/// ln m = 2 artanh((m - 1) / (m + 1)) by its series, whose argument is at most 0.172.
#[inline(always)]
fn ln(x: f64) -> f64 {
    // Without the bits of sqrt(1/2), and with the bias of exponents put back, the upper bits are e + 1023 for that m.
    const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    const BIAS: u64 = 1023;
    let biased = x.to_bits().wrapping_sub(SQRT_HALF).wrapping_add(BIAS << 52) >> 52;
    let m = f64::from_bits(x.to_bits().wrapping_sub(biased << 52).wrapping_add(BIAS << 52));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 19.0;
    for k in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * z + 1.0 / k;
    }
    f64::from(biased as i32 - BIAS as i32) * std::f64::consts::LN_2 + 2.0 * s * p
}

/// Sine and cosine of 2 pi w / 2^32, to 1e-14: the nearest quarter turn is split off in integers, which is exact,
/// and the rest, at most pi/4, goes through Taylor's series.
#[inline(always)]
fn sin_cos_turn(w: u32) -> (f64, f64) {
    let quarter = w.wrapping_add(1 << 29) >> 30;
    let rest = w.wrapping_sub(quarter << 30) as i32;
    let x = f64::from(rest) * (std::f64::consts::TAU / 4_294_967_296.0);
    let z = x * x;
    let mut sin = 1.0;
    for k in [14.0 * 15.0, 12.0 * 13.0, 10.0 * 11.0, 8.0 * 9.0, 6.0 * 7.0, 4.0 * 5.0, 2.0 * 3.0] {
        sin = 1.0 - sin * z * (1.0 / k);
    }
    sin *= x;
    let mut cos = 1.0;
    for k in [15.0 * 16.0, 13.0 * 14.0, 11.0 * 12.0, 9.0 * 10.0, 7.0 * 8.0, 5.0 * 6.0, 3.0 * 4.0, 1.0 * 2.0] {
        cos = 1.0 - cos * z * (1.0 / k);
    }
    let (s, c) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let s = if quarter & 2 == 0 { s } else { -s };
    let c = if (quarter + 1) & 2 == 0 { c } else { -c };
    (s, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that Random123 1.14 publishes for philox4x32 10.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn normals_are_box_and_mullers_by_the_standard_library() {
        let stream = Stream::new(7, &[3, 1 << 40]);
        for pair in (0..100_000).step_by(2) {
            let u = (f64::from(stream.bits(pair)) + 0.5) / 2_f64.powi(32);
            let angle = std::f64::consts::TAU * f64::from(stream.bits(pair + 1)) / 2_f64.powi(32);
            let (sin, cos) = angle.sin_cos();
            let radius = (-2.0 * u.ln()).sqrt();
            for (got, want) in [(stream.normal(pair), radius * cos), (stream.normal(pair + 1), radius * sin)] {
                // Half a unit of f32, and what f64 loses where cos is small beside its argument.
                assert!((f64::from(got) - want).abs() <= want.abs() * 6.0e-8 + 1e-14, "{pair}: {got} {want}");
            }
        }
    }

    #[test]
    fn extreme_words_stay_finite_and_exact_where_they_are_simple() {
        let small = (2.0 * 2_f64.powi(33).ln()).sqrt();
        assert_eq!(box_muller(0, 0), [small as f32, 0.0]);
        assert_eq!(box_muller(0, 1 << 31), [-small as f32, -0.0]);
        assert_eq!(box_muller(0, 1 << 30), [0.0, small as f32]);
        let [a, b] = box_muller(u32::MAX, u32::MAX);
        assert!(a > 0.0 && a < 2e-5 && b <= 0.0 && b > -1e-10, "{a} {b}");
    }

    #[test]
    fn filling_agrees_with_single_elements_at_every_offset_and_length() {
        let stream = Stream::new(1, &[]);
        for first in [0, 1, 2, 3, 4, 61, u64::from(u32::MAX) * 4 - 5] {
            for length in [0, 1, 2, 3, 4, 5, 63, 64, 65, 200] {
                let mut out = vec![f32::NAN; length];
                stream.fill_normal(first, &mut out);
                for (i, x) in (first..).zip(out) {
                    assert_eq!(x.to_bits(), stream.normal(i).to_bits(), "{first} {length} {i}");
                }
            }
        }
    }

    #[test]
    fn bits_filled_are_the_single_ones_and_ids_can_be_added_one_by_one() {
        let stream = Stream::new(9, &[4, 2]);
        assert_eq!(stream, Stream::of_key(Stream::new(9, &[4]).with(2).key()));
        for length in [0, 1, 5, 63, 64, 65, 200] {
            let mut out = vec![0; length];
            stream.fill_bits(&mut out);
            assert!(out.iter().zip(0..).all(|(word, i)| *word == stream.bits(i)), "{length}");
        }
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let n = 1_000_000;
        let mut x = vec![0.0; n];
        Stream::new(5, &[1]).fill_normal(0, &mut x);
        let moment = |k: i32| x.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n as f64;
        // Five standard errors: sqrt(var(x^k) / n), with var = 1, 2, 15, 96 for k = 1, 2, 3, 4.
        for (k, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0_f64)] {
            assert!((moment(k) - want).abs() < 5.0 * (variance / n as f64).sqrt(), "moment {k}: {}", moment(k));
        }
        let uniform = Stream::new(5, &[2]);
        let mean = (0..n as u64).map(|i| f64::from(uniform.uniform(i))).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / n as f64).sqrt(), "{mean}");
        assert!((0..n as u64).all(|i| (0.0..1.0).contains(&uniform.uniform(i))));
    }

    #[test]
    fn dice_read_a_stream_in_order() {
        let (mut dice, stream) = (Dice::new(3, &[1]), Stream::new(3, &[1]));
        assert_eq!(dice.between(0.0, 1.0), stream.uniform(0));
        assert_eq!(dice.between(-2.0, 2.0), 4.0 * stream.uniform(1) - 2.0);
        let mut seen = [0; 3];
        (0..3000).for_each(|_| seen[dice.below(3)] += 1);
        // five standard deviations of a binomial of 3000 and 1/3 are 129
        assert!(seen.iter().all(|n: &i32| (n - 1000).abs() <= 129), "{seen:?}");
        assert_eq!(dice.below(0), 0);
        assert!(dice.chance(1.0) && !dice.chance(0.0));
    }

    #[test]
    fn seeds_and_ids_make_different_streams() {
        let streams = [(0, vec![]), (1, vec![]), (0, vec![0]), (0, vec![1]), (0, vec![0, 1]), (0, vec![1, 0])];
        let firsts: std::collections::HashSet<_> =
            streams.iter().map(|(s, ids)| Stream::new(*s, ids).bits(0)).collect();
        assert_eq!(firsts.len(), streams.len());
    }
}
