//! `gradclip devices`: lists the devices that can clip, and the choice of `--device auto`.

use std::io::Write;

use anyhow::{Context as _, Result};
use gradclip::adapters::{self, is_software};
use gradclip::slices::{DeviceChoice, SliceDevice};
use gradclip::{cpu, wgpu};
use gradclip_measure::table::Table;
use gradclip_measure::text;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use crate::stdout;

const HEADING: [&str; 9] =
    ["", "name", "backend", "type", "driver", "buffer", "binding", "bindings", "workgroups"];
const LEGEND: &str = "
*           chosen by --device auto
buffer      max_buffer_size
binding     max_storage_buffer_binding_size
bindings    max_storage_buffers_per_shader_stage
workgroups  max_compute_workgroups_per_dimension
";

/// List this machine's adapters and the CPU path
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let adapters = adapters::enumerate();
    let auto = DeviceChoice::Auto.choose(&adapters)?;
    let printed = if args.json {
        text::write_json(out, &json(&adapters, auto))
    } else {
        out.write_all(table(&adapters, auto).as_bytes())
    };
    printed.context(stdout::PRINT_FAILED)
}

fn table(adapters: &[wgpu::Adapter], auto: Option<usize>) -> String {
    let mark = |is_chosen| if is_chosen { "*" } else { "" }.to_owned();
    let mut table = Table::new(HEADING);
    for (index, adapter) in adapters.iter().enumerate() {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        table.row([
            mark(auto == Some(index)),
            info.name.clone(),
            info.backend.to_string(),
            if is_software(&info) { "software".into() } else { format!("{:?}", info.device_type) },
            format!("{} {}", info.driver, info.driver_info),
            BinaryBytes(limits.max_buffer_size).to_string(),
            BinaryBytes(limits.max_storage_buffer_binding_size).to_string(),
            limits.max_storage_buffers_per_shader_stage.to_string(),
            limits.max_compute_workgroups_per_dimension.to_string(),
        ]);
    }
    let mut cpu = [(); HEADING.len()].map(|()| "-".to_owned());
    cpu[0] = mark(auto.is_none());
    cpu[1] = SliceDevice::Cpu { threads: cpu::threads() }.to_string();
    table.row(cpu);
    table.to_string() + LEGEND
}

fn json(adapters: &[wgpu::Adapter], auto: Option<usize>) -> Value {
    json!({
        "adapters": adapters.iter().map(adapter).collect::<Vec<_>>(),
        "cpu": { "threads": cpu::threads() },
        // An index into `adapters`, or null for the CPU path.
        "auto": auto,
    })
}

fn adapter(adapter: &wgpu::Adapter) -> Value {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    json!({
        "name": info.name,
        "backend": info.backend.to_string(),
        "type": format!("{:?}", info.device_type),
        "software": is_software(&info),
        "driver": info.driver,
        "driver_info": info.driver_info,
        "limits": {
            "max_buffer_size": limits.max_buffer_size,
            "max_storage_buffer_binding_size": limits.max_storage_buffer_binding_size,
            "max_storage_buffers_per_shader_stage": limits.max_storage_buffers_per_shader_stage,
            "max_compute_workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
        },
    })
}
