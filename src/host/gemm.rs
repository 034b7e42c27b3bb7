//! The matrix product that the tuned functions stand on: `matrixmultiply`, behind checked slices.

/// A row-major or transposed matrix over a slice: element (i, j) is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `stride` elements.
    pub fn rows(data: &'a [f32], stride: usize) -> View<'a> {
        View { data, row_stride: stride, column_stride: 1 }
    }

    /// The transpose of rows of `stride` elements.
    pub fn transposed(data: &'a [f32], stride: usize) -> View<'a> {
        View { data, row_stride: 1, column_stride: stride }
    }

    fn reach(&self, m: usize, n: usize) -> usize {
        (m - 1) * self.row_stride + (n - 1) * self.column_stride + 1
    }
}

/// c = alpha a b + beta c, with a [m, k], b [k, n] and c [m, n] in rows of `c_stride`. beta = 0 never reads c.
/// Panics where a view is shorter than its sizes say.
#[allow(clippy::too_many_arguments, reason = "the classic signature of GEMM")]
pub fn gemm(m: usize, k: usize, n: usize, alpha: f32, a: View, b: View, beta: f32, c: &mut [f32], c_stride: usize) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(c_stride >= n && (m - 1) * c_stride + n <= c.len(), "gemm: c is too short");
    if k > 0 {
        assert!(a.reach(m, k) <= a.data.len() && b.reach(k, n) <= b.data.len(), "gemm: an operand is too short");
    }
    // SAFETY: the three reaches were checked against their slices just above, so every element that the product
    // touches lies inside them; c is borrowed mutably, so it overlaps neither a nor b, and its rows do not overlap
    // each other since c_stride >= n.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            alpha,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.column_stride as isize,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.column_stride as isize,
            beta,
            c.as_mut_ptr(),
            c_stride as isize,
            1,
        );
    }
}
