//! Host slices, through the GPU and on the CPU path.

use gradclip::cpu::Gradient;
use gradclip::slices::{
    DeviceChoice, SliceClipper, SliceDevice, clip_grad_norm_async, clip_grad_value_async,
};
use gradclip::{Clip, Error, adapters, half};

use crate::page::whole_numbers;
use crate::{Outcome, check, equal, failed};

pub(crate) async fn both_devices_clip_host_slices() -> Outcome {
    let bits = |gradients: &[Vec<f32>]| -> Vec<Vec<u32>> {
        gradients.iter().map(|gradient| gradient.iter().map(|g| g.to_bits()).collect()).collect()
    };
    let gradients: Vec<Vec<f32>> = [10_000, 0, 3]
        .into_iter()
        .enumerate()
        .map(|(seed, len)| whole_numbers(seed, len).collect())
        .collect();
    let cpu = SliceClipper::new_async(&DeviceChoice::Cpu).await.map_err(failed)?;
    let gpu = SliceClipper::new_async(&DeviceChoice::Gpu).await.map_err(failed)?;
    check(matches!(gpu.device(), SliceDevice::Gpu(_)), || gpu.device().to_string())?;
    let (mut on_cpu, mut on_gpu) = (gradients.clone(), gradients.clone());
    let expected = cpu.clip_grad_norm_async(&mut on_cpu, 1.5).await.map_err(failed)?;
    let found = gpu.clip_grad_norm_async(&mut on_gpu, 1.5).await.map_err(failed)?;
    equal(&found.record, &expected.record, || "the record".to_owned())?;
    check(found.record.clip_coef < 1.0, || format!("{:?}", found.record))?;
    check(bits(&on_gpu) == bits(&on_cpu), || "the gradients after a clip by norm".to_owned())?;
    check(bits(&on_gpu) != bits(&gradients), || "nothing was clipped".to_owned())?;

    let (mut on_cpu, mut on_gpu) = (gradients.clone(), gradients.clone());
    cpu.clip_grad_value_async(&mut on_cpu, 0.5).await.map_err(failed)?;
    gpu.clip_grad_value_async(&mut on_gpu, 0.5).await.map_err(failed)?;
    check(bits(&on_gpu) == bits(&on_cpu), || "the gradients after a clip by value".to_owned())?;

    let (mut on_cpu, mut on_gpu) = (gradients.clone(), gradients);
    let supplied = Clip::by_supplied_norm(1.0);
    let expected = cpu.clip_with_norm_async(&mut [Gradient::f32(&mut on_cpu[0])], supplied, 8.0).await;
    let found = gpu.clip_with_norm_async(&mut [Gradient::f32(&mut on_gpu[0])], supplied, 8.0).await;
    equal(&found.map_err(failed)?.record, &expected.map_err(failed)?.record, || {
        "a supplied norm".to_owned()
    })?;
    check(bits(&on_gpu) == bits(&on_cpu), || "the gradients after a supplied norm".to_owned())?;

    // Groups, and a type of 16 bits with an odd number of elements.
    let clips = [Clip::by_global_norm(1.5), Clip::by_global_norm(0.5)];
    let half = || -> Vec<half::f16> { whole_numbers(7, 4099).map(half::f16::from_f32).collect() };
    let (mut on_cpu, mut on_gpu) = ([half(), half()], [half(), half()]);
    let mut records = Vec::new();
    for (clipper, [first, second]) in [(&cpu, &mut on_cpu), (&gpu, &mut on_gpu)] {
        let mut gradients = [Gradient::f16(first), Gradient::f16(second).group(1)];
        records.push(clipper.clip_groups_async(&mut gradients, &clips).await.map_err(failed)?.record);
    }
    equal(&records[1], &records[0], || "the records of two groups".to_owned())?;
    equal(&on_gpu, &on_cpu, || "the gradients of two groups".to_owned())?;

    let error = gpu.clip_async(&mut [Gradient::f32(&mut [1.0])], Clip::by_global_norm(-1.0)).await;
    equal(&error.err(), &Some(Error::MaxNorm { given: -1.0 }), || "a negative limit".to_owned())
}

pub(crate) async fn a_software_adapter_is_not_chosen() -> Outcome {
    let adapters = adapters::enumerate_async().await;
    let adapter = adapters.first().ok_or("there is no adapter")?;
    let is_software = adapters::is_software(&adapter.get_info());
    let auto = SliceClipper::new_async(&DeviceChoice::Auto).await.map_err(failed)?;
    equal(&matches!(auto.device(), SliceDevice::Cpu { .. }), &is_software, || {
        format!("the device is {}, the adapter is {:?}", auto.device(), adapter.get_info())
    })
}

pub(crate) async fn the_cpu_path_needs_no_gpu() -> Outcome {
    let mut gradients = [vec![3.0, 0.0], vec![4.0]];
    let clipped = clip_grad_norm_async(&mut gradients, 1.0).await.map_err(failed)?;
    equal(&clipped.record.total_norm, &5.0, || "the norm".to_owned())?;
    clip_grad_value_async(&mut gradients, 0.5).await.map_err(failed)?;
    check(gradients[1] == [0.5], || format!("{gradients:?}"))?;
    let clipper = SliceClipper::new_async(&DeviceChoice::Cpu).await.map_err(failed)?;
    equal(&clipper.device(), &SliceDevice::Cpu { threads: 1 }, || "the device".to_owned())?;
    let mut gradients = [vec![3.0, 0.0], vec![4.0]];
    let clipped = clipper.clip_grad_norm_async(&mut gradients, 1.0).await.map_err(failed)?;
    equal(&clipped.record.total_norm, &5.0, || "the norm on the CPU path".to_owned())?;
    check((gradients[1][0] - 0.8).abs() < 1e-6, || format!("{gradients:?}"))
}
