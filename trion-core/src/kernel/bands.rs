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

/// Calls `task(index, a's band, b's band)` once for each index of `tasks`, on the threads of `parallel`.
pub(crate) fn for_each_band<A: Send, B: Send>(
    parallel: &dyn Parallel,
    tasks: Range<usize>,
    a: &Bands<'_, A>,
    b: &Bands<'_, B>,
    task: impl Fn(usize, Band<'_, A>, Band<'_, B>) + Sync,
) {
    run_tasks(parallel, tasks, &|index| {
        // SAFETY: `run_tasks` hands out each index once, so these are the only bands with this index.
        let (a, b) = unsafe { (a.band(index), b.band(index)) };
        task(index, a, b);
    });
}
