use burn::tensor::TensorData;
use proptest::prelude::*;

use super::*;
use crate::cache::KvCache;
use crate::lora::values;
use crate::precision::Quantized;
use crate::testing::random;
use crate::threads::Threads;
use crate::tokens::indices;

const SEEDS: Range<u64> = 0..1_000_000;

type Leaves = Vec<Tensor<2>>;
type Op = Box<dyn Fn(Leaves) -> Tensor<2>>;

/// Inputs whose gradients are wanted, and an operation on them: fused, and out of Burn's own.
struct Case {
    name: &'static str,
    seed: u64,
    leaves: Leaves,
    ops: [Op; 2],
}

impl Case {
    fn new(name: &'static str, shapes: Vec<[usize; 2]>, seed: u64, ops: [Op; 2]) -> Self {
        let leaves = shapes.into_iter().zip(seed * 100..);
        let leaves = leaves.map(|(shape, seed)| tensor(shape, 1.5, seed)).collect();
        Self { name, seed, leaves, ops }
    }

    /// A random gradient of the output.
    fn upstream(&self, shape: [usize; 2]) -> Tensor<2> {
        tensor(shape, 1.0, self.seed * 100 + 99)
    }

    /// The output, then the gradient of each input.
    fn outcome(&self, op: &dyn Fn(Leaves) -> Tensor<2>) -> Vec<Vec<f32>> {
        let tracked = |leaf: &Tensor<2>| leaf.clone().autodiff().require_grad();
        let leaves: Leaves = self.leaves.iter().map(tracked).collect();
        let out = op(leaves.clone());
        let upstream = self.upstream(out.dims()).autodiff();
        let mut gradients = (out.clone() * upstream).sum().backward();
        let gradients = leaves.iter().map(|leaf| leaf.grad_remove(&mut gradients).unwrap());
        [out.inner()].into_iter().chain(gradients).map(values).collect()
    }

    fn bits(&self) -> (&'static str, Vec<u32>) {
        let outcome = self.outcome(&self.ops[0]).concat();
        (self.name, outcome.into_iter().map(f32::to_bits).collect())
    }

    /// Value and gradients are those that Burn computes.
    fn check(&self) {
        let [got, want] = self.ops.each_ref().map(|op| self.outcome(op));
        for (part, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_close(got, want, 2e-4, &format!("{}, part {part}", self.name));
        }
        // Untracked inputs that nobody else holds, which may be written in place.
        let leaves = self.leaves.iter().map(|leaf| leaf.clone().mul_scalar(1.0f32));
        let alone = values(self.ops[0](leaves.collect()));
        assert!(alone == got[0], "{} in place", self.name);
    }

    /// Gradients are finite differences of the value.
    fn check_slopes(&self) {
        const STEP: f32 = 1e-2;
        let outcome = self.outcome(&self.ops[0]);
        for direction in 0..4 {
            let ways = self.leaves.iter().zip((1u64 << 32) + 100 * direction..);
            let ways: Leaves = ways.map(|(leaf, seed)| tensor(leaf.dims(), 1.0, seed)).collect();
            let along = |step: f32| {
                let moved = self.leaves.iter().zip(&ways);
                let moved = moved.map(|(leaf, way)| leaf.clone() + way.clone().mul_scalar(step));
                let out = self.ops[0](moved.collect());
                let upstream = self.upstream(out.dims());
                product(&values(out), &values(upstream))
            };
            let difference = (along(STEP) - along(-STEP)) / (2.0 * f64::from(STEP));
            let slopes = outcome[1..].iter().zip(&ways);
            let slope: f64 = slopes.map(|(slope, way)| product(slope, &values(way.clone()))).sum();
            let close = (slope - difference).abs() <= 0.02 * slope.abs() + 0.01;
            assert!(close, "{}: slope {slope}, difference {difference}", self.name);
        }
    }
}

fn product(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let bound = tolerance * (1.0 + largest);
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= bound, "{what}: {got} at {at}, not {want} ± {bound}");
    }
}

/// Uniform in ±`bound`.
fn tensor(shape: [usize; 2], bound: f32, seed: u64) -> Tensor<2> {
    let values = random(shape[0] * shape[1], bound, seed);
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn quantized(values: &[f32], columns: usize) -> Matrix {
    let mut quantized = Quantized::default();
    quantized.append(values, columns);
    quantized.into_matrix(columns, &Device::flex())
}

fn take<const N: usize>(leaves: Leaves) -> [Tensor<2>; N] {
    leaves.try_into().unwrap()
}

fn of_one(op: impl Fn(Tensor<2>) -> Tensor<2> + 'static) -> Op {
    Box::new(move |leaves: Leaves| {
        let [x] = take(leaves);
        op(x)
    })
}

fn rms_norm_case(rows: usize, width: usize, seed: u64) -> Case {
    let ops = [rms_norm, plain::rms_norm].map(|op| -> Op {
        Box::new(move |leaves: Leaves| {
            let [x, scale] = take(leaves);
            op(x, scale, 1e-5)
        })
    });
    Case::new("rms_norm", vec![[rows, width], [1, width]], seed, ops)
}

/// A linear map with an adapter on each range of outputs whose bit is set: the three thirds, and
/// all of them; of several clients, each with as many rows. Weights of eight bits are frozen, others are
/// trained.
fn linear_case(
    clients: usize,
    sizes: [usize; 4],
    adapted: u8,
    options: [bool; 3],
    seed: u64,
) -> Case {
    let ([rows, inputs, outputs, rank], [bias, residual, int8]) = (sizes, options);
    let rows = clients * rows;
    let third = |part: usize| part * outputs / 3;
    let ranges = [0..third(1), third(1)..third(2), third(2)..outputs, 0..outputs];
    let placed = ranges.into_iter().zip([0.5f32, 2.0, -1.0, 1.5]).enumerate();
    let placed = placed.filter(|(range, _)| (adapted >> *range) & 1 == 1);
    let placed: Vec<fused::Placed> = placed.map(|(_, placed)| placed).collect();
    let mut shapes = vec![[rows, inputs]];
    shapes.extend((!int8).then_some([outputs, inputs]));
    shapes.extend(bias.then_some([1, outputs]));
    shapes.extend(residual.then_some([rows, outputs]));
    let pair = |(range, _): &fused::Placed| [[rank, inputs], [range.len(), rank]];
    let stacked = placed.iter().flat_map(pair).map(|[rows, columns]| [clients * rows, columns]);
    shapes.extend(stacked);
    let frozen = random(outputs * inputs, 1.5, seed * 100 + 98);
    let frozen = int8.then(|| quantized(&frozen, inputs));
    let ops = [linear, plain::linear].map(|op| -> Op {
        let (frozen, placed) = (frozen.clone(), placed.clone());
        Box::new(move |leaves: Leaves| {
            let mut leaves = leaves.into_iter();
            let mut next = || leaves.next().unwrap();
            let x = next();
            let weight = frozen.clone().unwrap_or_else(|| Matrix::F32(next()));
            let bias = bias.then(&mut next);
            let residual = residual.then(&mut next);
            let factors = placed.iter().map(|(outputs, scale)| {
                let (a, b) = (next(), next());
                Factors { a, b, outputs: outputs.clone(), scale: *scale }
            });
            op(x, &LinearMap { weight, bias }, factors.collect(), residual)
        })
    });
    Case::new("linear", shapes, seed, ops)
}

fn rope_case(shape: AttentionShape, sequences: usize, seed: u64) -> Case {
    let table = tensor([shape.length, shape.head_dim], 1.0, seed * 100 + 98);
    let ops = [rope, plain::rope].map(|op| {
        let table = table.clone();
        of_one(move |qkv| op(qkv, table.clone(), shape))
    });
    Case::new("rope", vec![[sequences * shape.length, shape.width()]], seed, ops)
}

fn attention_case(shape: AttentionShape, sequences: usize, seed: u64) -> Case {
    let ops = [attention, plain::attention].map(|op| of_one(move |qkv| op(qkv, shape)));
    Case::new("attention", vec![[sequences * shape.length, shape.width()]], seed, ops)
}

fn silu_gated_case(rows: usize, width: usize, seed: u64) -> Case {
    let ops = [silu_gated, plain::silu_gated].map(of_one);
    Case::new("silu_gated", vec![[rows, 2 * width]], seed, ops)
}

fn nll_case(shape: [usize; 3], chunk: usize, int8: bool, seed: u64) -> Case {
    fn fused(x: Tensor<2>, head: &Matrix, targets: &Targets, chunk: usize) -> Tensor<2> {
        nll(x, head, targets.clone(), chunk)
    }
    let [rows, inputs, vocab] = shape;
    let head = tensor([vocab, inputs], 0.5, seed * 100 + 98);
    let head = if int8 { quantized(&values(head), inputs) } else { Matrix::F32(head) };
    // Two rows of three, the last ones first.
    let rows_asked: Vec<u32> = (0..rows as u32).rev().filter(|row| row % 3 != 1).collect();
    let ids = rows_asked.iter().map(|row| (row * 7 + seed as u32) % vocab as u32).collect();
    let targets = Targets { rows: rows_asked, ids };
    let ops = [fused, plain::nll].map(|op| {
        let (head, targets) = (head.clone(), targets.clone());
        of_one(move |x| op(x, &head, &targets, chunk))
    });
    Case::new("nll", vec![[rows, inputs]], seed, ops)
}

/// Cases of all operations.
fn cases(rows: usize, width: usize, sequences: usize, shape: AttentionShape) -> Vec<Case> {
    let map = |rows, int8, seed| {
        let sizes = [rows, width, width + 3, width.min(16)];
        linear_case(1, sizes, 0b1010, [true, true, int8], seed)
    };
    let stack = [rows.div_ceil(3), width, width + 3, width.min(16)];
    vec![
        rms_norm_case(rows, width, 1),
        map(rows, false, 2),
        map(rows, true, 3),
        map(3, false, 4),
        map(3, true, 5),
        rope_case(shape, sequences, 6),
        attention_case(shape, sequences, 7),
        silu_gated_case(rows, width, 8),
        nll_case([rows, width, width + 50], rows.div_ceil(4), true, 9),
        linear_case(3, stack, 0b0111, [true, true, false], 10),
    ]
}

/// Cases that every kernel cuts into several pieces.
fn large_cases() -> Vec<Case> {
    cases(150, 400, 3, AttentionShape { length: 70, heads: 4, kv_heads: 2, head_dim: 32 })
}

fn attention_shapes() -> impl Strategy<Value = AttentionShape> {
    let lengths = prop_oneof![3usize..70, prop::sample::select(vec![1usize, 2, 31, 32, 33, 70])];
    let halves = prop_oneof![1usize..=32, prop::sample::select(vec![4usize, 24, 32])];
    (lengths, 1usize..4, 1usize..4, halves).prop_map(|(length, kv_heads, group, half)| {
        let (heads, head_dim) = (kv_heads * group, 2 * half);
        AttentionShape { length, heads, kv_heads, head_dim }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn norms_and_gates_are_those_of_burn(rows in 1usize..9, width in 1usize..140, seed in SEEDS) {
        rms_norm_case(rows, width, seed).check();
        silu_gated_case(rows, width, seed).check();
    }

    #[test]
    fn linear_maps_are_those_of_burn(
        clients in 1usize..4,
        sizes in [1usize..12, 1..70, 3..70, 1..9],
        adapted in 0u8..15,
        options in any::<[bool; 3]>(),
        seed in SEEDS,
    ) {
        linear_case(clients, sizes, adapted, options, seed).check();
    }

    #[test]
    fn rotations_and_attention_are_those_of_burn(
        shape in attention_shapes(),
        sequences in 1usize..4,
        seed in SEEDS,
    ) {
        rope_case(shape, sequences, seed).check();
        attention_case(shape, sequences, seed).check();
    }

    #[test]
    fn losses_are_those_of_burn(
        shape in [1usize..30, 1..50, 2..90],
        chunk in 1usize..24,
        int8 in any::<bool>(),
        seed in SEEDS,
    ) {
        nll_case(shape, chunk, int8, seed).check();
    }

    #[test]
    fn the_cache_changes_nothing(
        shape in attention_shapes(),
        prompt in 1usize..64,
        pieces in prop::collection::vec(prop_oneof![Just(1usize), 2usize..40], 1..4),
        seed in SEEDS,
    ) {
        // The last ones go beyond the first capacity.
        let lengths: Vec<usize> = [prompt].into_iter().chain(pieces).chain([64, 1, 2]).collect();
        let whole = AttentionShape { length: lengths.iter().sum(), ..shape };
        let qkv = tensor([whole.length, whole.width()], 1.5, seed);
        let want = values(attention(qkv.clone(), whole));
        let width = whole.kv_heads * whole.head_dim;
        let empty = Tensor::<2>::zeros([whole.length, width], &Device::flex());
        let (mut cache, mut reference) = (KvCache::default(), [empty.clone(), empty]);
        for length in lengths {
            let (past, shape) = (cache.length(), AttentionShape { length, ..whole });
            let new = qkv.clone().narrow(0, past, length);
            let want = &want[past * whole.out_width()..][..length * whole.out_width()];
            let (out, seen) = plain::cached_attention(new.clone(), reference, past, shape);
            reference = seen;
            assert_close(&values(out), want, 1e-4, "Burn's cache");
            for layer in [0, 1] {
                let out = cache.attention(layer, new.clone(), shape);
                assert_close(&values(out), want, 1e-4, "the cache");
            }
            cache.advance(length);
        }
    }

    #[test]
    fn eight_bits_lose_half_a_scale_at_most(
        rows in 1usize..6,
        columns in 1usize..70,
        batch in 1usize..9,
        seed in SEEDS,
    ) {
        let mut original = random(rows * columns, 3.0, seed);
        original[..columns].fill(0.0);
        let matrix = quantized(&original, columns);
        let all: Vec<u32> = (0..rows as u32).collect();
        let got = values(matrix.rows(indices(&all, &Device::flex())));
        assert_eq!(got.len(), original.len());
        for (got, original) in got.chunks_exact(columns).zip(original.chunks_exact(columns)) {
            let scale = original.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
            assert!(got.iter().zip(original).all(|(x, y)| (x - y).abs() <= 0.501 * scale));
        }
        let x = tensor([batch, columns], 1.0, seed + 1);
        let widened = Matrix::F32(matrix.widened());
        let [got, want] = [matrix, widened].map(|weight| {
            let map = LinearMap { weight, bias: None };
            values(linear(x.clone(), &map, vec![], None))
        });
        assert_close(&got, &want, 1e-5, "eight bits");
    }
}

#[test]
fn gradients_are_finite_differences() {
    let shape = AttentionShape { length: 35, heads: 4, kv_heads: 2, head_dim: 6 };
    for case in cases(5, 12, 2, shape) {
        case.check_slopes();
    }
}

#[test]
fn work_in_many_pieces_is_that_of_burn() {
    for case in large_cases() {
        case.check();
    }
}

#[test]
fn threads_change_no_bit() {
    let [one, two, three] = [1, 2, 3].map(|count| {
        let threads = Threads::new(count).unwrap();
        threads.run(|| large_cases().iter().map(Case::bits).collect::<Vec<_>>())
    });
    for ((one, two), three) in one.iter().zip(&two).zip(&three) {
        assert!(one == two && one == three, "{}", one.0);
    }
}

/// Each of three clients gets from a stack, output and gradients, what it gets alone.
#[test]
fn a_stack_gives_each_client_the_bits_of_it_alone() {
    let (clients, rows, inputs, outputs, rank) = (3, 20, 40, 50, 4);
    for int8 in [false, true] {
        let weight = tensor([outputs, inputs], 1.0, 1);
        let weight = if int8 { quantized(&values(weight), inputs) } else { Matrix::F32(weight) };
        assert!(weight.same_bits([rows, clients * rows]));
        let map = LinearMap { weight, bias: None };
        let shapes = [[rows, inputs], [rank, inputs], [30, rank], [rank, inputs], [20, rank]];
        let leaves = shapes.into_iter().zip(2..);
        let leaves: Leaves = leaves
            .map(|([rows, columns], seed)| tensor([clients * rows, columns], 1.0, seed))
            .collect();
        let upstream = tensor([clients * rows, outputs], 1.0, 9);
        let outcome = |leaves: &[Tensor<2>], upstream: Tensor<2>| -> Vec<Vec<f32>> {
            let leaves: Leaves =
                leaves.iter().map(|leaf| leaf.clone().autodiff().require_grad()).collect();
            let [x, a, b, a2, b2] = take(leaves.clone());
            let first = Factors { a, b, outputs: 0..30, scale: 2.0 };
            let second = Factors { a: a2, b: b2, outputs: 30..50, scale: 0.5 };
            let out = linear(x, &map, vec![first, second], None);
            let mut gradients = (out.clone() * upstream.autodiff()).sum().backward();
            let gradients = leaves.iter().map(|leaf| leaf.grad_remove(&mut gradients).unwrap());
            [out.inner()].into_iter().chain(gradients).map(values).collect()
        };
        let all = outcome(&leaves, upstream.clone());
        for client in 0..clients {
            let own = |tensor: &Tensor<2>| {
                let size = tensor.dims()[0] / clients;
                tensor.clone().narrow(0, client * size, size)
            };
            let leaves: Leaves = leaves.iter().map(own).collect();
            let alone = outcome(&leaves, own(&upstream));
            for (part, (alone, all)) in alone.iter().zip(&all).enumerate() {
                let own = &all[client * alone.len()..(client + 1) * alone.len()];
                assert!(alone == own, "client {client}, part {part}, int8 {int8}");
            }
        }
    }
}

#[test]
fn frozen_weights_and_inputs_have_no_gradient() {
    let (x, weight) = (tensor([5, 9], 1.0, 1), tensor([7, 9], 1.0, 2));
    let map = LinearMap { weight: Matrix::F32(weight.clone()), bias: None };
    for x in [x.clone(), x.clone().autodiff()] {
        assert!(!linear(x.clone(), &map, vec![], None).is_tracked());
        let [got, want] = [linear, plain::linear].map(|op| {
            let factor = |shape, seed| tensor(shape, 1.0, seed).autodiff().require_grad();
            let (a, b) = (factor([2, 9], 3), factor([4, 2], 4));
            let factors = Factors { a: a.clone(), b: b.clone(), outputs: 2..6, scale: 2.0 };
            let out = op(x.clone(), &map, vec![factors], None);
            assert!(out.is_tracked());
            let mut gradients = out.square().sum().backward();
            assert!(x.grad(&gradients).is_none() && weight.grad(&gradients).is_none());
            [a, b].map(|factor| values(factor.grad_remove(&mut gradients).unwrap()))
        });
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, 2e-4, "factors");
        }
    }
    assert!(!linear(x, &map, vec![], None).is_autodiff());
}
