//! Sweeps the launch parameters of the norm kernel on a device: `cargo bench --bench sweep`.
//!
//! Launches the library's kernel with other workgroup and tile sizes, more slots, more dispatches, and as a module
//! without runtime checks. All variants read the same bytes, take turns and are compared with the read roofline, by the
//! method of `gradclip bench`. Every result is checked. The library hard-codes these parameters: the sweep shows
//! whether its values suit a given GPU.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use gradclip::kernels::tables::{Tile, fold_grid, tile_elements};
use gradclip::kernels::{Alignment, Dialect, Kernel, Reduction, Slots, TileFormat, WORKGROUP_SIZE};
use gradclip::slices::DeviceChoice;
use gradclip::{DType, NormType, wgpu};
use gradclip_measure::data::SetData;
use gradclip_measure::device::{GpuDevice, allocate_one};
use gradclip_measure::sets::GradientSet;
use gradclip_measure::table::Table;
use gradclip_measure::timing::{Sample, Timing};
use gradclip_measure::{bytes, timing};
use wgpu::util::{BufferInitDescriptor, DeviceExt as _};
use wgpu::{BufferUsages, ErrorFilter};

/// The default of `--bytes`.
const BYTES: usize = 1 << 30;
/// The default on a software adapter, which would take minutes for more.
const BYTES_IN_SOFTWARE: usize = 4 << 20;

/// Sweep the launch parameters of the norm kernel on one device
#[derive(Parser)]
struct Args {
    /// The GPU: gpu (a software adapter if there is no other), or part of a GPU's name
    #[arg(long, default_value = "gpu")]
    device: DeviceChoice,

    /// The bytes to read: a power of two, at most the device's maximum binding size
    /// [default: 1GiB, 4MiB on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    bytes: Option<usize>,

    /// The approximate time to measure in total; every row is repeated a few times in any case
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    seconds: f64,

    /// Set by `cargo bench`. Without it, as in `cargo test`, every variant runs a few times on little data
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let gpu = GpuDevice::open(&args.device, None)?
        .context("the sweep needs a GPU; `--device gpu` also accepts a software adapter")?;
    let default = if gpu.software { BYTES_IN_SOFTWARE } else { BYTES };
    let bytes = if args.bench { args.bytes.unwrap_or(default) } else { 1 << 20 };
    let limits = gpu.device.limits();
    let longest = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    let longest = usize::try_from(longest).unwrap_or(usize::MAX);
    ensure!(
        bytes.is_power_of_two() && (1 << 16..=longest).contains(&bytes),
        "--bytes is {bytes}, but it must be a power of two from {} to {longest}",
        1 << 16
    );
    let budget = Duration::try_from_secs_f64(if args.bench { args.seconds } else { 0.0 })?;

    let set = GradientSet::new("sweep", DType::F32, vec![bytes / size_of::<f32>()]);
    let data = SetData::new(&set);
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
    let buffer = allocate_one(&gpu.device, bytes, usage)?;
    gpu.write(&buffer, data.bytes())?;
    let read = gpu.rooflines.read(std::slice::from_ref(&buffer));
    let steps = gpu.fastest_steps(false, &read)?;

    let (mut launches, mut rejected) = (Vec::new(), Vec::new());
    for variant in Variant::all(set.elements(), &limits) {
        match Launch::new(&gpu, &buffer, set.elements(), variant) {
            Ok(launch) => launches.push(launch),
            Err(error) => rejected.push(format!("{variant:?}: {error:#}")),
        }
    }
    launches.iter().try_for_each(|launch| launch.check(&gpu, data.norm))?;
    let roofline = launches.len();
    let timings = timing::time_interleaved(launches.len() + 1, budget, |index| {
        if index == roofline {
            gpu.time(false, |encoder| gpu.rooflines.encode(&read, steps, encoder))
        } else {
            launches[index].time(&gpu)
        }
    })?;
    print!("{}", table(&gpu, bytes, &launches, &timings));
    for error in rejected {
        println!("the device rejects {error}");
    }
    Ok(())
}

/// Launch parameters of the norm kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Variant {
    /// The parameters that differ from the library's.
    varied: &'static str,
    workgroup: u32,
    /// The tile size, in elements.
    tile: usize,
    /// The number of windows of a dispatch, each with its own binding.
    slots: usize,
    /// The number of dispatches. All write to the same buffer of partials, so that each waits for the previous one.
    dispatches: usize,
    checked: bool,
}

impl Variant {
    /// Returns the variants that fit `elements` elements and the device's limits, the library's first.
    fn all(elements: usize, limits: &wgpu::Limits) -> Vec<Self> {
        let tile = usize::try_from(tile_elements(elements as u64)).expect("a tile is small");
        let library = Self {
            varied: "library",
            workgroup: WORKGROUP_SIZE,
            tile,
            slots: 1,
            dispatches: 1,
            checked: true,
        };
        let sizes = [64, 128, 256, 512, 1024].into_iter().flat_map(|workgroup| {
            let varied = "workgroup, tile";
            (12..=16).map(move |log2| Self { varied, workgroup, tile: 1 << log2, ..library })
        });
        let powers = |to: usize| (1..).map(|log2| 1 << log2).take_while(move |&power| power <= to);
        // Two bindings hold the tile table and the partials.
        let bindings = limits
            .max_storage_buffers_per_shader_stage
            .min(limits.max_buffers_and_acceleration_structures_per_shader_stage)
            .min(limits.max_bindings_per_bind_group);
        let slots = powers((bindings as usize - 2).min(256));
        let slots = slots.map(|slots| Self { varied: "slots", slots, ..library });
        let dispatches = powers(64).map(|dispatches| Self { varied: "dispatches", dispatches, ..library });
        let unchecked = Self { varied: "module", checked: false, ..library };
        let fits = |variant: &Self| {
            let most = limits.max_compute_workgroup_size_x.min(limits.max_compute_invocations_per_workgroup);
            variant.workgroup <= most && variant.slots * variant.dispatches * variant.tile <= elements
        };
        let others = sizes.chain(slots).chain(dispatches).chain([unchecked]);
        [library].into_iter().chain(others).filter(fits).collect()
    }

    fn pipeline(self, device: &wgpu::Device) -> wgpu::ComputePipeline {
        let format = TileFormat { alignment: Alignment::Vector, dtype: DType::F32 };
        let reduction = Reduction::new(NormType::L2, false);
        let slots = Slots::Separate(self.slots);
        let kernel = Kernel::Partials { reduction, format, slots };
        let mut constants = kernel.pipeline_constants();
        for (name, value) in &mut constants {
            if *name == "WORKGROUP_SIZE" {
                *value = self.workgroup.into();
            }
        }
        let module = wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(kernel.source(Dialect::WebGpu).into()),
        };
        let module = if self.checked {
            device.create_shader_module(module)
        } else {
            #[expect(unsafe_code, reason = "the sweep measures the cost of runtime checks")]
            // SAFETY: every tile of `tiles` lies within its window, the tables and partials have one item per tile, and
            // every loop is bounded by a tile's length.
            unsafe {
                device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked())
            }
        };
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        })
    }

    /// Returns the elements of a window.
    const fn window(self, elements: usize) -> usize {
        elements / (self.slots * self.dispatches)
    }

    /// Returns the tiles of one dispatch. Its partials follow those of the previous dispatch.
    fn tiles(self, elements: usize, dispatch: usize) -> Vec<Tile> {
        let window = self.window(elements);
        let count = self.slots * window / self.tile;
        let tile = |index: usize| Tile {
            slot: word(index * self.tile / window),
            first: word(index * self.tile % window),
            count: word(self.tile),
            target_index: word(dispatch * count + index),
        };
        (0..count).map(tile).collect()
    }
}

/// Converts an index for the shader.
fn word(number: usize) -> u32 {
    u32::try_from(number).expect("a binding has fewer elements")
}

/// A variant bound to a buffer.
struct Launch {
    variant: Variant,
    pipeline: wgpu::ComputePipeline,
    /// The bindings and the grid of each dispatch.
    dispatches: Vec<(wgpu::BindGroup, [u32; 2])>,
    partials: wgpu::Buffer,
}

impl Launch {
    /// Prepares a variant. Fails if the device rejects it.
    fn new(gpu: &GpuDevice, buffer: &wgpu::Buffer, elements: usize, variant: Variant) -> Result<Self> {
        let filters = [ErrorFilter::OutOfMemory, ErrorFilter::Internal, ErrorFilter::Validation];
        let scopes = filters.map(|filter| gpu.device.push_error_scope(filter));
        let launch = Self::unguarded(&gpu.device, buffer, elements, variant);
        let mut error = None;
        for scope in scopes.into_iter().rev() {
            error = pollster::block_on(scope.pop()).or(error);
        }
        error.map_or(Ok(launch), |error| Err(anyhow!(error.to_string())))
    }

    fn unguarded(device: &wgpu::Device, buffer: &wgpu::Buffer, elements: usize, variant: Variant) -> Self {
        let partials = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: (elements / variant.tile * size_of::<[u32; 2]>()) as u64,
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let pipeline = variant.pipeline(device);
        let mut launch = Self { variant, pipeline, dispatches: Vec::new(), partials };
        for dispatch in 0..variant.dispatches {
            let tiles = variant.tiles(elements, dispatch);
            let bytes = (variant.window(elements) * size_of::<f32>()) as u64;
            let window = |slot: usize| {
                let offset = (dispatch * variant.slots + slot) as u64 * bytes;
                wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(bytes) }
            };
            launch.bind(device, &tiles, &(0..variant.slots).map(window).collect::<Vec<_>>());
        }
        launch
    }

    /// Adds a dispatch of `tiles` on `windows`.
    fn bind(&mut self, device: &wgpu::Device, tiles: &[Tile], windows: &[wgpu::BufferBinding<'_>]) {
        let table = device.create_buffer_init(&BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(tiles),
            usage: BufferUsages::STORAGE,
        });
        let first = [table.as_entire_buffer_binding(), self.partials.as_entire_buffer_binding()];
        let entries: Vec<_> = (0..)
            .zip(first.into_iter().chain(windows.iter().cloned()))
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer),
            })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let grid = fold_grid(tiles.len(), device.limits().max_compute_workgroups_per_dimension);
        self.dispatches.push((bind_group, grid));
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        for (bind_group, [x, y]) in &self.dispatches {
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }

    fn time(&self, gpu: &GpuDevice) -> Result<Sample> {
        gpu.time(false, |encoder| self.encode(encoder))
    }

    /// Runs the variant and compares the norm of its partials with `norm`.
    fn check(&self, gpu: &GpuDevice, norm: f64) -> Result<()> {
        let size = self.partials.size();
        gpu.run(|encoder| {
            self.encode(encoder);
            encoder.copy_buffer_to_buffer(&self.partials, 0, &gpu.staging, 0, size);
        })?;
        let found = gpu.read_mapped(&gpu.staging, |bytes| {
            let partials = bytes[..usize::try_from(size)?].chunks_exact(size_of::<[f32; 2]>());
            let sum = |partial: &[u8]| f64::from(bytemuck::pod_read_unaligned::<[f32; 2]>(partial)[0]);
            Ok(partials.map(sum).sum::<f64>().sqrt())
        })?;
        let close = (found - norm).abs() <= 1e-6 * norm;
        ensure!(close, "{:?}: the norm is {found}, but it should be {norm}", self.variant);
        Ok(())
    }
}

fn table(gpu: &GpuDevice, bytes: usize, launches: &[Launch], timings: &[Timing]) -> String {
    let roofline = timings[launches.len()].seconds;
    let heading = [
        "varied",
        "workgroup",
        "tile",
        "slots",
        "dispatches",
        "module",
        "time",
        "spread",
        "GB/s",
        "roofline",
    ];
    let mut table = Table::new(heading).numbers_from(6);
    for (Launch { variant, .. }, Timing { seconds, .. }) in launches.iter().zip(timings) {
        table.row([
            variant.varied.to_owned(),
            variant.workgroup.to_string(),
            variant.tile.to_string(),
            variant.slots.to_string(),
            variant.dispatches.to_string(),
            if variant.checked { "checked" } else { "unchecked" }.to_owned(),
            format!("{:.1} µs", seconds.median * 1e6),
            format!("{:.0} %", 100.0 * seconds.relative_spread()),
            format!("{:.0}", bytes as f64 / seconds.median / 1e9),
            format!("{:.1} %", 100.0 * roofline.median / seconds.median),
        ]);
    }
    let mut text = format!(
        "{}, {bytes} bytes of f32, read in {:.1} µs; by the {} clock, {} repetitions\n",
        gpu.name,
        roofline.median * 1e6,
        gpu.clock(),
        roofline.count
    );
    if gpu.software {
        text += "This is a software adapter. Its times say nothing about GPU speed.\n";
    }
    format!("{text}{table}")
}
