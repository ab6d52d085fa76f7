use proptest::prelude::*;

use super::*;
use crate::testing::random;
use crate::threads::Threads;

/// A matrix in a slice, by rows or by columns, with something around it.
fn view(data: &[f32], shape: [usize; 2], transposed: bool) -> View<'_> {
    let [rows, columns] = if transposed { [shape[1], shape[0]] } else { shape };
    let view = View::part(&data[..rows * (columns + 5)], columns + 5, 3, columns);
    if transposed { view.transposed() } else { view }
}

/// Sums of a product in f64, and of its absolute values.
fn exact(x: View<'_>, y: View<'_>, row: usize, column: usize) -> (f64, f64) {
    let at = |view: View<'_>, row: usize, column: usize| {
        f64::from(view.data[row * view.strides[0] + column * view.strides[1]])
    };
    let products = (0..x.shape[1]).map(|inner| at(x, row, inner) * at(y, inner, column));
    products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
}

type Multiply = fn((&mut [f32], usize, usize), View<'_>, View<'_>, f32, bool);

fn check(
    multiply: Multiply,
    [rows, inner, width]: [usize; 3],
    transposed: [bool; 2],
    (scale, add): (f32, bool),
    seed: u64,
) {
    let room = |x: usize, y: usize| (x + 5) * (y + 5);
    let (x, y) = (random(room(rows, inner), 1.0, seed), random(room(inner, width), 1.0, seed + 1));
    let x = view(&x, [rows, inner], transposed[0]);
    let y = view(&y, [inner, width], transposed[1]);
    let (columns, from) = (width + 7, 4);
    let before = random(rows * columns, 1.0, seed + 2);
    let mut out = before.clone();
    multiply((&mut out, columns, from), x, y, scale, add);
    for (at, (&after, &before)) in out.iter().zip(&before).enumerate() {
        let (row, column) = (at / columns, at % columns);
        if !(from..from + width).contains(&column) {
            assert_eq!(after, before, "beside the product, seed {seed}");
            continue;
        }
        if (row * 31 + column) % 17 != 0 {
            continue;
        }
        let (sum, size) = exact(x, y, row, column - from);
        let want = f64::from(scale) * sum + if add { f64::from(before) } else { 0.0 };
        let allowed = 4e-7 * (f64::from(scale.abs()) * size + want.abs());
        let error = (f64::from(after) - want).abs();
        assert!(error <= allowed, "{row}, {column}: {after}, not {want}, seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_of_any_shape_are_those_of_f32(
        shape in [1usize..300, 1usize..900, 1usize..300],
        transposed: [bool; 2],
        scale in prop_oneof![Just(1.0f32), -2.0f32..2.0],
        add: bool,
        seed in 0u64..1 << 40,
    ) {
        check(multiply, shape, transposed, (scale, add), seed);
        check(multiply_as_f32, shape, transposed, (scale, add), seed);
    }

    #[test]
    fn rows_have_the_same_bits_beside_others_where_that_is_said(
        rows in 1usize..100,
        clients in 2usize..6,
        sides in [sides(), sides()],
        eight_bits: bool,
        seed in 0u64..1 << 40,
    ) {
        check_same_bits(rows, clients, sides, eight_bits, seed);
    }
}

fn sides() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..200, prop::sample::select(vec![16usize, 64, 128, 512, 513, 1100])]
}

/// Both products of a linear map, of one client and of several: whether they are said to be alike.
fn check_same_bits(
    rows: usize,
    clients: usize,
    [outputs, inputs]: [usize; 2],
    eight_bits: bool,
    seed: u64,
) -> bool {
    if !same_bits([rows, clients * rows], [outputs, inputs], eight_bits) {
        return false;
    }
    let weights = random(outputs * inputs, 127.0, seed);
    let values: Vec<i8> = weights.iter().map(|weight| *weight as i8).collect();
    let scales = random(outputs, 0.1, seed + 1);
    let weights = match eight_bits {
        true => Weights::Int8 { values: &values, scales: &scales },
        false => Weights::F32(&weights),
    };
    let both = |x: &[f32], dy: &[f32]| -> [Vec<u32>; 2] {
        let mut y = vec![0.0; dy.len()];
        let mut dx = vec![0.0; x.len()];
        linear(&mut y, x, weights, [outputs, inputs], false);
        linear_backward(&mut dx, dy, weights, [outputs, inputs], false);
        [y, dx].map(|values| values.into_iter().map(f32::to_bits).collect())
    };
    let (x, dy) = (
        random(clients * rows * inputs, 1.0, seed + 2),
        random(clients * rows * outputs, 1.0, seed + 3),
    );
    let [y, dx] = both(&x, &dy);
    for client in 0..clients {
        let part = |width: usize| client * rows * width..(client + 1) * rows * width;
        let alone = both(&x[part(inputs)], &dy[part(outputs)]);
        let what = format!("{client} of {clients}, {rows} rows, {outputs} x {inputs}, seed {seed}");
        assert!(alone[0] == y[part(outputs)] && alone[1] == dx[part(inputs)], "{what}");
    }
    true
}

/// Models' own maps are among those of which it is said.
#[test]
fn rows_of_small_models_have_the_same_bits_beside_others() {
    for [outputs, inputs] in [[128, 64], [64, 172], [344, 64], [512, 64]] {
        for (rows, clients) in [(16, 16), (32, 8), (64, 4)] {
            for eight_bits in [false, true] {
                assert!(check_same_bits(rows, clients, [outputs, inputs], eight_bits, 1));
            }
        }
    }
    for (rows, [outputs, inputs]) in
        [([3, 6], [128, 64]), ([8, 40], [16, 32]), ([20, 100], [20, 600]), ([10, 70], [600, 3])]
    {
        assert!(!same_bits(rows, [outputs, inputs], false), "{rows:?}, {outputs} x {inputs}");
    }
}

#[test]
fn products_larger_than_what_is_packed_at_once() {
    for shape in [[2100, 130, 129], [128, 130, 2100], [129, 1600, 140]] {
        check(multiply, shape, [false, true], (0.5, true), 7);
    }
}

#[test]
fn threads_change_no_bit_of_a_product() {
    let (rows, inner, width) = (300, 900, 300);
    let (x, y) = (random(rows * inner, 1.0, 1), random(inner * width, 1.0, 2));
    let on = |threads: usize| {
        let mut out = vec![0.0; rows * width];
        Threads::new(threads).unwrap().run(|| {
            multiply((&mut out, width, 0), View::new(&x, inner), View::new(&y, width), 1.0, false);
        });
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(on(1), on(2));
    assert_eq!(on(1), on(5));
}

#[test]
fn what_is_not_finite_stays_so() {
    let side = 130;
    for value in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY, f32::NEG_INFINITY] {
        let (mut x, y) = (random(side * side, 1.0, 1), random(side * side, 1.0, 2));
        x[5 * side + 77] = value;
        let mut out = vec![0.0; side * side];
        multiply((&mut out, side, 0), View::new(&x, side), View::new(&y, side), 1.0, false);
        for (row, out) in out.chunks(side).enumerate() {
            assert!(out.iter().all(|out| out.is_finite() == (row != 5)), "{value}, row {row}");
        }
    }
}

#[test]
fn tiny_and_huge_factors_keep_their_precision() {
    for exponent in [-100, -60, 0, 60, 100] {
        let side = 128;
        let size = 2.0f32.powi(exponent);
        let (x, y) = (random(side * side, size, 1), random(side * side, 1.0 / size, 2));
        let (x, y) = (View::new(&x, side), View::new(&y, side));
        let mut out = vec![0.0; side * side];
        multiply((&mut out, side, 0), x, y, 1.0, false);
        for at in (0..out.len()).step_by(37) {
            let (want, size) = exact(x, y, at / side, at % side);
            let error = (f64::from(out[at]) - want).abs();
            assert!(error <= 4e-7 * size, "2^{exponent}: {} is not {want}", out[at]);
        }
    }
}

#[test]
fn maps_of_few_rows_are_dot_products() {
    for [rows, inputs, outputs] in [[1, 576, 450], [2, 33, 7], [3, 1, 5], [4, 130, 1], [1, 16, 4]] {
        let x = random(rows * inputs, 1.0, 1);
        let weights = random(outputs * inputs, 127.0, 2);
        let values: Vec<i8> = weights.iter().map(|weight| *weight as i8).collect();
        let scales = random(outputs, 0.1, 3);
        let before = random(rows * outputs, 1.0, 4);
        let int8 = Weights::Int8 { values: &values, scales: &scales };
        for (weights, add) in [(Weights::F32(&weights), true), (int8, false), (int8, true)] {
            let mut y = before.clone();
            linear(&mut y, &x, weights, [outputs, inputs], add);
            for (at, (&got, &before)) in y.iter().zip(&before).enumerate() {
                let (x, output) = (&x[at / outputs * inputs..][..inputs], at % outputs);
                let weight = |input: usize| match weights {
                    Weights::F32(weights) => f64::from(weights[output * inputs + input]),
                    Weights::Int8 { values, scales } => {
                        f64::from(values[output * inputs + input]) * f64::from(scales[output])
                    }
                };
                let products = x.iter().enumerate().map(|(at, x)| f64::from(*x) * weight(at));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), product: f64| {
                    (sum + product, size + product.abs())
                });
                let want = sum + if add { f64::from(before) } else { 0.0 };
                let error = (f64::from(got) - want).abs();
                assert!(error <= 5e-7 * (size + want.abs()), "output {output}: {got}, not {want}");
            }
        }
    }
}
