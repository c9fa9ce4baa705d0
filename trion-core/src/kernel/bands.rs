//! One matrix, written by many tasks at once: each task gets a band of columns that no other task gets.

use core::marker::PhantomData;
use core::ops::Range;

use crate::parallel::{Parallel, run_tasks};

/// A vertical band of a row-major matrix: the same columns of every row.
pub(crate) struct Band<'a, T> {
    first: *mut T,
    rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

impl<T> Band<'_, T> {
    /// Row `row` of the band; empty below the last row.
    #[inline]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        let (first, width) = if row < self.rows {
            // SAFETY: `for_each_band` made the band inside a slice that holds `rows` rows `stride` apart.
            (unsafe { self.first.add(row * self.stride) }, self.width)
        } else {
            (self.first, 0)
        };
        // SAFETY: `width` elements from here lie in that row of the slice, no other band has these columns, and `self`
        // is borrowed mutably for as long as the row is.
        unsafe { core::slice::from_raw_parts_mut(first, width) }
    }
}

/// A row-major matrix that is cut into bands.
pub(crate) struct Bands<'a, T> {
    first: *mut T,
    rows: usize,
    stride: usize,
    band_width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: sharing it only hands out disjoint bands (see `band`), each of which acts as a `&mut [T]`.
unsafe impl<T: Send> Sync for Bands<'_, T> {}

impl<'a, T> Bands<'a, T> {
    /// Cuts `matrix` `[rows, stride]` into bands of `band_width` columns; the last may be narrower.
    pub(crate) fn new(matrix: &'a mut [T], stride: usize, band_width: usize) -> Self {
        let rows = matrix.len().checked_div(stride).unwrap_or(0);
        Bands { first: matrix.as_mut_ptr(), rows, stride, band_width, matrix: PhantomData }
    }

    /// Band `index`; empty beyond the last.
    ///
    /// # Safety
    /// While a band is alive, no other with its index may be made.
    unsafe fn band(&self, index: usize) -> Band<'_, T> {
        let column = index.saturating_mul(self.band_width).min(self.stride);
        Band {
            // SAFETY: `column` is at most one row's length, so the pointer stays within the slice or at its end.
            first: unsafe { self.first.add(if self.rows == 0 { 0 } else { column }) },
            rows: self.rows,
            stride: self.stride,
            width: self.band_width.min(self.stride - column),
            matrix: PhantomData,
        }
    }
}

/// Up to three matrices that a region of tasks writes: `()` stands for none.
pub(crate) trait Cut: Sync {
    /// What a task gets.
    type Piece<'p>
    where
        Self: 'p;

    /// The piece of task `index`.
    ///
    /// # Safety
    /// While a piece is alive, no other with its index may be made.
    unsafe fn piece(&self, index: usize) -> Self::Piece<'_>;
}

impl Cut for () {
    type Piece<'p> = ();

    unsafe fn piece(&self, _index: usize) {}
}

impl<T: Send> Cut for Bands<'_, T> {
    type Piece<'p>
        = Band<'p, T>
    where
        Self: 'p;

    unsafe fn piece(&self, index: usize) -> Band<'_, T> {
        // SAFETY: the caller promises that no other piece with this index is alive.
        unsafe { self.band(index) }
    }
}

/// Calls `task(index, pieces)` once for each index of `tasks`, with that index's piece of each matrix, on the threads of
/// `parallel`.
pub(crate) fn for_each_band<'p, A: Cut + 'p, B: Cut + 'p, C: Cut + 'p>(
    parallel: &dyn Parallel,
    tasks: Range<usize>,
    matrices: (&'p mut A, &'p mut B, &'p mut C),
    task: impl Fn(usize, (A::Piece<'p>, B::Piece<'p>, C::Piece<'p>)) + Sync,
) {
    let (a, b, c): (&'p A, &'p B, &'p C) = (matrices.0, matrices.1, matrices.2);
    run_tasks(parallel, tasks, &|index| {
        // SAFETY: the matrices are borrowed mutably, and `run_tasks` hands out each index once, so no other pieces with
        // this index exist.
        let pieces = unsafe { (a.piece(index), b.piece(index), c.piece(index)) };
        task(index, pieces);
    });
}
