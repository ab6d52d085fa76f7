//! A matrix whose parts are written by different threads.
#![allow(unsafe_code, reason = "columns of one row are written by different threads")]

use std::marker::PhantomData;

/// Rows of a matrix that several threads write, each in its own rows and columns.
pub(super) struct Rows<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it only hands out parts, and whoever takes one promises that no other overlaps it.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    pub(super) fn new(data: &'a mut [f32], width: usize) -> Self {
        let rows = data.len() / width;
        Self { start: data.as_mut_ptr(), rows, width, borrowed: PhantomData }
    }

    /// Columns `from..from + width` of `count` rows from `first` on.
    ///
    /// # Safety
    /// While a part lives, no other that shares a row and a column with it is written or read.
    pub(super) unsafe fn part(
        &self,
        [first, count]: [usize; 2],
        [from, width]: [usize; 2],
    ) -> Part<'a> {
        assert!(first < self.rows && count <= self.rows - first);
        assert!(from + width <= self.width);
        // SAFETY: the first row and column lie within the matrix.
        let start = unsafe { self.start.add(first * self.width + from) };
        Part { start, rows: count, stride: self.width, width, borrowed: PhantomData }
    }
}

/// Some columns of some rows, for one writer.
pub(super) struct Part<'a> {
    start: *mut f32,
    rows: usize,
    stride: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl Part<'_> {
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the row lies within the matrix, and nobody else has these columns of it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}
