//! The choice of a device for host slices.

use gradclip::Error;
use gradclip::cpu;
use gradclip::slices::{DeviceChoice, SliceClipper, SliceDevice};
use gradclip::wgpu::DeviceType;

use crate::common::gpu::adapters;

#[test]
fn auto_takes_no_software_adapter() {
    let device = SliceClipper::new(&DeviceChoice::Auto).unwrap().device();
    let hardware = adapters()
        .into_iter()
        .map(|adapter| adapter.get_info())
        .find(|info| info.device_type != DeviceType::Cpu);
    match (device, hardware) {
        (SliceDevice::Cpu { threads }, None) => assert_eq!(threads, cpu::threads()),
        (SliceDevice::Gpu(taken), Some(best)) => assert_eq!(taken.name, best.name),
        (device, hardware) => panic!("chose {device}, but the best GPU is {hardware:?}"),
    }
}

#[test]
fn a_device_is_found_by_a_part_of_its_name() {
    let name = adapters()[0].get_info().name;
    let part = name[..name.len() / 2].to_uppercase();
    let device = SliceClipper::new(&DeviceChoice::Named(part)).unwrap().device();
    let SliceDevice::Gpu(info) = device else { panic!("{device}") };
    assert_eq!(info.name, name);

    let error = SliceClipper::new(&DeviceChoice::Named("abacus".into())).unwrap_err();
    let Error::NoDevice { wanted, found } = &error else { panic!("{error:?}") };
    assert!(wanted.contains("abacus") && found.contains(&name), "{error}");
}

#[test]
fn a_choice_is_parsed_from_its_display() {
    for (text, choice) in [
        ("auto", DeviceChoice::Auto),
        ("gpu", DeviceChoice::Gpu),
        ("cpu", DeviceChoice::Cpu),
        ("Radeon", DeviceChoice::Named("Radeon".into())),
    ] {
        assert_eq!(text.parse(), Ok(choice.clone()));
        assert_eq!(choice.to_string(), text);
    }
    assert_eq!("GPU".parse(), Ok(DeviceChoice::Gpu));
}
