//! Constructors of gradients and parameters, from buffers and from slices.

use gradclip::slices::{DeviceChoice, SliceClipper, clip_grad_norm};
use gradclip::{Clip, DType, Gradient, Parameter};
use half::{bf16, f16};

use crate::gpu;

#[test]
fn gradients_are_constructed_from_buffers_and_slices() {
    let gpu = gpu();
    let measure = Clip::by_global_norm(1.0).coefficient_only();
    let record = |gradient: Gradient<'_>, clip| gpu.record(&gpu.clipper.prepare(&[gradient], clip).unwrap());
    let norm = |gradient: Gradient<'_>| record(gradient, measure).total_norm;

    let singles = gpu.buffer_of(&[12.0_f32, 3.0, 4.0]);
    for gradient in [Gradient::f32(&singles), Gradient::from(&singles), Gradient::new(&singles, DType::F32)] {
        assert_eq!(norm(gradient), 13.0);
    }
    assert_eq!(norm(singles.slice(4..).into()), 5.0);
    assert_eq!(norm(singles.slice(..4).into()), 12.0);
    assert_eq!(norm(Gradient::from(singles.slice(4..)).elements(0..1)), 12.0, "a later range replaces it");

    let halves = gpu.buffer_of(&[3.0, 4.0].map(f16::from_f32));
    assert_eq!(norm(Gradient::f16(&halves)), 5.0);
    let brains = gpu.buffer_of(&[3.0, 4.0].map(bf16::from_f32));
    assert_eq!(norm(Gradient::bf16(&brains)), 5.0);

    let agc = Clip::by_parameter_norm(0.5, 1e-3).coefficient_only();
    let coef = |parameter: Parameter<'_>, gradient: Gradient<'_>| {
        record(gradient.parameter(parameter), agc).clip_coef
    };
    let pair = || Gradient::from(singles.slice(4..));
    for (parameter, expected) in [
        (Parameter::from(singles.slice(4..)), 0.5),
        (Parameter::f16(&halves), 0.5),
        (Parameter::bf16(&brains), 0.5),
    ] {
        assert_eq!(coef(parameter, pair()), expected);
    }
    for parameter in [Parameter::f32(&singles), Parameter::from(&singles)] {
        assert_eq!(coef(parameter, Gradient::f32(&singles)), 0.5);
    }
}

#[test]
fn host_slices_are_vectors_arrays_or_slices() {
    let expected = [vec![0.6, 0.0], vec![0.8]];
    let near = |gradients: &[&[f32]]| {
        let pairs = gradients.concat().into_iter().zip(expected.concat());
        assert!(pairs.into_iter().all(|(x, y)| (x - y).abs() < 1e-6), "{gradients:?}");
    };
    let (mut w, mut b) = ([3.0, 0.0], [4.0]);
    clip_grad_norm(&mut [&mut w[..], &mut b], 1.0).unwrap();
    near(&[&w, &b]);

    let mut vectors = vec![vec![3.0, 0.0], vec![4.0]];
    assert_eq!(clip_grad_norm(&mut vectors, 1.0).unwrap().record.total_norm, 5.0);
    near(&[&vectors[0], &vectors[1]]);

    let clipper = SliceClipper::new(&DeviceChoice::Cpu).unwrap();
    let mut arrays = [[3.0, 0.0], [4.0, 0.0]];
    clipper.clip_grad_norm(&mut arrays, 1.0).unwrap();
    near(&[&arrays[0], &arrays[1][..1]]);
}
