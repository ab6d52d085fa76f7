//! The processor's matrix tiles (Intel AMX): products of bf16 matrices, summed as f32.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume
//! 2, `TDPBF16PS`: a tile is sixteen rows of 64 bytes; each sum takes products of pairs, from
//! values that lie as \[row, pair\] on the left and \[pair, column\] on the right.
#![allow(unsafe_code, reason = "the instructions have no safe form")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows and columns of a block of sums: two by two tiles.
pub(super) const BLOCK: usize = 32;

/// Inner values of one step.
pub(super) const DEPTH: usize = 32;

/// Rows of a tile, and 32-bit words in a row.
pub(super) const SIDE: usize = 16;

/// Sixteen rows of 64 bytes.
pub(super) type Tile = [[u32; SIDE]; SIDE];

/// bf16 terms that make one value of an operand; see `split`.
pub(super) const TERMS: usize = 3;

/// `DEPTH` inner values of `BLOCK` rows or columns as pairs of bf16; the terms of both halves.
pub(super) type Step = [[Tile; 2]; TERMS];

/// Bytes that one step asks for ahead of their use.
pub(super) const AHEAD: usize = 12 * 64;

/// A block of sums, in rows.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[f32; BLOCK]; BLOCK]);

/// That this processor has tiles, and the operating system lets this process use them.
#[derive(Clone, Copy)]
pub(super) struct Tiles(());

impl Tiles {
    /// Asks once; the answer stays the same.
    pub(super) fn get() -> Option<Self> {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        ALLOWED.get_or_init(|| has_tiles() && permitted()).then_some(Self(()))
    }

    /// Sets tiles up on this thread, until what it returns is dropped.
    pub(super) fn configure(self) -> Configured {
        let mut layout =
            TileLayout { palette: 1, row_bytes: [0; 16], rows: [0; 16], unused: [0; 15] };
        layout.row_bytes[..8].fill(64);
        layout.rows[..8].fill(SIDE as u8);
        // SAFETY: the processor has tiles and the process may use them, or there would be no
        // `Tiles`; the layout has the 64 bytes that are read, and eight tiles of the full size are
        // what palette 1 offers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(nostack)) };
        Configured(PhantomData)
    }
}

/// Whether the processor has tiles of bf16 (the manual's volume 2, `CPUID`, leaf 7).
fn has_tiles() -> bool {
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES
}

/// Asks Linux for the registers, as its documentation of x86 "xstate" has it: they are large, so
/// that a process must name its wish once.
fn permitted() -> bool {
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: this call of arch_prctl takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileLayout {
    palette: u8,
    unused: [u8; 15],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles that are set up on this thread.
pub(super) struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or nothing would have been set up.
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}

impl Configured {
    /// Writes left right to `sums`, from the same steps of both, lines of `left` being rows and
    /// those of `right` columns. Of the nine products of terms it takes the six larger ones.
    ///
    /// Meanwhile it asks for what will be wanted next: from `ahead` on, [`AHEAD`] bytes a step.
    ///
    /// # Panics
    /// Operands of different length, or of no step.
    pub(super) fn product(&self, sums: &mut Sums, left: &[Step], right: &[Step], ahead: *const u8) {
        assert_eq!(left.len(), right.len(), "steps of a product");
        assert!(!left.is_empty(), "a product of something");
        // SAFETY: tiles are set up on this thread, since `self` cannot leave it. Each turn of the
        // loop reads one step of `left` and of `right`, 6144 bytes from where it starts, and there
        // are as many as turns. The sums take 32 rows of 128 bytes. Asking for memory ahead of its
        // use changes nothing, wherever it lies. No tile is in use elsewhere: the compiler knows
        // none, and the registers are named as overwritten.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                // The first terms of both.
                "tileloadd tmm4, [{left} + {row}]",
                "tileloadd tmm6, [{right} + {row}]",
                "tileloadd tmm7, [{right} + {row} + 1024]",
                "tileloadd tmm5, [{left} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead} + 0]",
                "prefetcht1 [{ahead} + 64]",
                // Third on the left, first on the right.
                "tileloadd tmm4, [{left} + {row} + 4096]",
                "tileloadd tmm5, [{left} + {row} + 5120]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead} + 128]",
                "prefetcht1 [{ahead} + 192]",
                // Second and first.
                "tileloadd tmm4, [{left} + {row} + 2048]",
                "tileloadd tmm5, [{left} + {row} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead} + 256]",
                "prefetcht1 [{ahead} + 320]",
                // Second and second.
                "tileloadd tmm6, [{right} + {row} + 2048]",
                "tileloadd tmm7, [{right} + {row} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead} + 384]",
                "prefetcht1 [{ahead} + 448]",
                // First and second.
                "tileloadd tmm4, [{left} + {row}]",
                "tileloadd tmm5, [{left} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead} + 512]",
                "prefetcht1 [{ahead} + 576]",
                // First and third.
                "tileloadd tmm6, [{right} + {row} + 4096]",
                "tileloadd tmm7, [{right} + {row} + 5120]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead} + 640]",
                "prefetcht1 [{ahead} + 704]",
                "add {left}, 6144",
                "add {right}, 6144",
                "add {ahead}, 768",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + 2 * {row}], tmm0",
                "tilestored [{sums} + 2 * {row} + 64], tmm1",
                "tilestored [{sums} + 2 * {row} + 2048], tmm2",
                "tilestored [{sums} + 2 * {row} + 2112], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                ahead = inout(reg) ahead => _,
                steps = inout(reg) left.len() => _,
                row = in(reg) 64usize,
                sums = in(reg) sums.0.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}
