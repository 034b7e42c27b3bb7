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
