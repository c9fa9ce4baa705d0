//! Matrices that are written by many tasks at once: each task gets a band of columns that no other task gets.
//!
//! Every session has matrices of its own, so a region of tasks works on a list of them.

use core::marker::PhantomData;
use core::ops::Range;

use heapless::Vec;

use crate::parallel::{Parallel, run_tasks};

/// The most sessions that go through a model together: lists of them lie on the stack.
pub(crate) const MAX_SESSIONS: usize = 32;

/// Something of each session.
pub(crate) type PerSession<T> = Vec<T, MAX_SESSIONS>;

/// A list of what `items` gives; there are at most [`MAX_SESSIONS`].
pub(crate) fn per_session<T>(items: impl Iterator<Item = T>) -> PerSession<T> {
    let mut list = PerSession::new();
    for item in items {
        if list.push(item).is_err() {
            break;
        }
    }
    list
}

/// A vertical band of a row-major matrix: the same columns of every row.
pub(crate) struct Band<'a, T> {
    first: *mut T,
    rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

impl<'a, T> Band<'a, T> {
    /// Row `row` of the band; empty below the last row.
    #[inline]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        Band { ..*self }.into_row(row)
    }

    /// [`Band::row`], for as long as the matrix is borrowed.
    #[inline]
    fn into_row(self, row: usize) -> &'a mut [T] {
        let (first, width) = if row < self.rows {
            // SAFETY: `Bands::band` made the band inside a slice that holds `rows` rows `stride` apart.
            (unsafe { self.first.add(row * self.stride) }, self.width)
        } else {
            (self.first, 0)
        };
        // SAFETY: `width` elements from here lie in that row of the slice, and no other band has these columns. This one
        // is used up, or borrowed mutably for as long as the row is.
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

    /// A matrix of one row, cut into bands of `band_width`: where each row of a matrix is a task of its own.
    pub(crate) fn of_rows(matrix: &'a mut [T], band_width: usize) -> Self {
        let stride = matrix.len();
        Self::new(matrix, stride, band_width)
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

/// The same band of a matrix of each session.
pub(crate) struct Tile<'a, T> {
    matrices: &'a [Bands<'a, T>],
    index: usize,
}

impl<T> Tile<'_, T> {
    /// Row `row` of the band of session `session`; empty where there is none.
    #[inline]
    pub(crate) fn row(&mut self, session: usize, row: usize) -> &mut [T] {
        let Some(matrix) = self.matrices.get(session) else { return &mut [] };
        // SAFETY: `for_each_tile` hands out each index once, so bands of this index are this tile's alone, and `self` is
        // borrowed mutably for as long as a row of them is.
        unsafe { matrix.band(self.index) }.into_row(row)
    }
}

/// Calls `task(index, tile)` once for each index of `tasks`, with that band of every matrix, on the threads of `parallel`.
pub(crate) fn for_each_tile<T: Send>(
    parallel: &dyn Parallel,
    tasks: Range<usize>,
    matrices: &mut PerSession<Bands<'_, T>>,
    task: impl Fn(usize, Tile<'_, T>) + Sync,
) {
    let matrices: &[Bands<'_, T>] = matrices;
    run_tasks(parallel, tasks, &|index| task(index, Tile { matrices, index }));
}

/// Up to three matrices of each session that a region of tasks writes: `()` stands for none.
pub(crate) trait Cut: Sync {
    /// What a task gets.
    type Piece<'p>
    where
        Self: 'p;

    /// Band `index` of the matrix of session `session`.
    ///
    /// # Safety
    /// While a piece is alive, no other with its session and index may be made.
    unsafe fn piece(&self, session: usize, index: usize) -> Self::Piece<'_>;
}

impl Cut for () {
    type Piece<'p> = ();

    unsafe fn piece(&self, _session: usize, _index: usize) {}
}

impl<T: Send> Cut for PerSession<Bands<'_, T>> {
    type Piece<'p>
        = Band<'p, T>
    where
        Self: 'p;

    unsafe fn piece(&self, session: usize, index: usize) -> Band<'_, T> {
        match self.get(session) {
            // SAFETY: the caller promises that no other piece with this session and index is alive.
            Some(matrix) => unsafe { matrix.band(index) },
            None => Band {
                first: core::ptr::NonNull::dangling().as_ptr(),
                rows: 0,
                stride: 0,
                width: 0,
                matrix: PhantomData,
            },
        }
    }
}

/// Calls `task(session, index, pieces)` once for each index of each session's `tasks`, with that band of each of the
/// session's matrices, on the threads of `parallel`.
pub(crate) fn for_each_band<'p, A: Cut + 'p, B: Cut + 'p, C: Cut + 'p>(
    parallel: &dyn Parallel,
    tasks: &PerSession<Range<usize>>,
    matrices: (&'p mut A, &'p mut B, &'p mut C),
    task: impl Fn(usize, usize, (A::Piece<'p>, B::Piece<'p>, C::Piece<'p>)) + Sync,
) {
    let (a, b, c): (&'p A, &'p B, &'p C) = (matrices.0, matrices.1, matrices.2);
    let total = tasks.iter().map(Range::len).sum();
    run_tasks(parallel, 0..total, &|mut number| {
        for (session, tasks) in tasks.iter().enumerate() {
            if number < tasks.len() {
                let index = tasks.start + number;
                // SAFETY: the matrices are borrowed mutably, and `run_tasks` hands out each number once, which belongs to
                // one index of one session, so no other pieces with these exist.
                let pieces = unsafe { (a.piece(session, index), b.piece(session, index), c.piece(session, index)) };
                return task(session, index, pieces);
            }
            number -= tasks.len();
        }
    });
}
