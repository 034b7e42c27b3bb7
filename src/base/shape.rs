//! The shape of a tensor: up to four sizes, the contiguous one last.

/// Sizes of a row-major tensor, contiguous dimension last.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    sizes: [usize; 4],
    rank: u8,
}

impl Shape {
    /// Panics above rank 4: shapes are written in code, never read from a file.
    pub const fn new<const N: usize>(sizes: [usize; N]) -> Self {
        assert!(N <= 4, "a shape has at most four sizes");
        let mut s = [1; 4];
        let mut i = 0;
        while i < N {
            s[i] = sizes[i];
            i += 1;
        }
        Shape { sizes: s, rank: N as u8 }
    }

    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank as usize]
    }

    pub fn elements(&self) -> usize {
        self.sizes().iter().product()
    }

    /// The contiguous size (1 for a scalar).
    pub fn width(&self) -> usize {
        self.sizes().last().copied().unwrap_or(1)
    }

    /// All other sizes multiplied: how many rows of `width` there are.
    pub fn rows(&self) -> usize {
        self.sizes().split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
}

/// The matrix with other sizes: zeros below and right of what it had, or without what lies there now.
pub fn resized(values: &[f32], from: Shape, to: Shape) -> Vec<f32> {
    let (old, new) = (from.width(), to.width());
    let mut matrix = vec![0.0; to.elements()];
    if old > 0 && new > 0 {
        for (to, from) in matrix.chunks_mut(new).zip(values.chunks(old)) {
            let both = old.min(new);
            to[..both].copy_from_slice(&from[..both]);
        }
    }
    matrix
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Shape::new(sizes)
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_filled_up_and_cut_back() {
        let of = |rows: usize, columns: usize| Shape::new([rows, columns]);
        let filled = resized(&[1.0, 2.0, 3.0, 4.0], of(2, 2), of(3, 4));
        assert_eq!(filled, [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(resized(&filled, of(3, 4), of(2, 2)), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(resized(&filled, of(3, 4), of(1, 2)), [1.0, 2.0]);
        assert_eq!(resized(&[], of(0, 3), of(1, 2)), [0.0, 0.0]);
        assert_eq!(resized(&[1.0], of(1, 1), of(0, 4)), [0.0; 0]);
    }
}
