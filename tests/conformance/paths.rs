//! The paths, and their agreement: the bits of a clip depend only on the adapter.
//!
//! `GRADCLIP_JS_HOST`, a command line, adds the paths of the JavaScript package; see [`js_host`](crate::js_host).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};

use gradclip::{ClipRecord, Error, wgpu};

use crate::case::Options;
use crate::common::clip::{Outcome, clip_groups_on_cpu};
use crate::common::gpu::{Gpu, adapters, least_limits};
use crate::common::numbers::bits;
use crate::common::placement::{Extent, Placement};
use crate::common::role::Role;
use crate::js_host::{Configuration, JsHost};
use crate::reference_check::{self, Precision};

/// A device with a layout of the buffers, the same through the JavaScript package, or the CPU.
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) precision: &'static Precision,
    means: Means,
}

enum Means {
    Cpu,
    Gpu { gpu: Arc<Gpu>, layout: Layout, agreement: Arc<Agreement> },
    Js { host: Arc<JsHost>, configuration: Configuration, layout: Layout, agreement: Arc<Agreement> },
}

/// Why a clip failed. The JavaScript package has only the message of an [`Error`].
pub(crate) enum Failure {
    Error(Error),
    Message(String),
}

impl Failure {
    /// Checks that this is the expected error.
    pub(crate) fn check(&self, expected: &Error) {
        match self {
            // Compared as text, because NaN is not equal to itself.
            Self::Error(error) => assert_eq!(format!("{error:?}"), format!("{expected:?}")),
            // JavaScript cannot hold such a number, so the package refuses it first.
            Self::Message(message) if expected.to_string().contains(&usize::MAX.to_string()) => {
                assert!(message.ends_with("it must be an integer from 0 to 2^53 - 1"), "{message}");
            }
            Self::Message(message) => assert_eq!(*message, in_js(&expected.to_string())),
        }
    }
}

/// Converts a message to that of the JavaScript package, whose options have other names: `byNorm` for `Clip::by_norm`.
fn in_js(message: &str) -> String {
    let word = |word: &str| {
        let name =
            word.rsplit("::").next().filter(|name| name.starts_with(char::is_lowercase)).unwrap_or(word);
        let mut parts = name.split('_');
        let first = parts.next().unwrap_or_default().to_owned();
        let camel = parts.fold(first, |name, part| name + &part[..1].to_uppercase() + &part[1..]);
        if camel == "byGlobalNorm" { "maxNorm".to_owned() } else { camel }
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut converted = String::new();
    for piece in message.split_inclusive(|c| !is_name(c)) {
        let (name, rest) = piece.split_at(piece.find(|c| !is_name(c)).unwrap_or(piece.len()));
        converted.push_str(&if name.contains('_') || name.contains("::") {
            word(name)
        } else {
            name.to_owned()
        });
        converted.push_str(rest);
    }
    converted
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Message(message) => message.fmt(f),
        }
    }
}

type Layout = fn(&[Extent]) -> Placement;

pub(crate) fn all() -> Vec<Arc<Path>> {
    let layouts: [(_, Layout); 3] =
        [("separate", Placement::separate), ("arena", Placement::arena), ("packed", Placement::packed)];
    let mut paths = vec![Path { name: "cpu".into(), precision: &reference_check::CPU, means: Means::Cpu }];
    for adapter in adapters() {
        let agreement = Arc::<Agreement>::default();
        let configurations =
            [("default", wgpu::Limits::default()), ("full", adapter.limits()), ("least", least_limits())];
        for (configuration, limits) in configurations {
            let gpu = Arc::new(Gpu::open(&adapter, limits));
            for (name, layout) in layouts {
                paths.push(Path {
                    name: format!("{}/{configuration}/{name}", short_name(&adapter.get_info())),
                    precision: &reference_check::GPU,
                    means: Means::Gpu { gpu: gpu.clone(), layout, agreement: agreement.clone() },
                });
            }
        }
        if let Some(gpu) = Gpu::with_binding_arrays(&adapter, least_limits()) {
            paths.push(Path {
                name: format!("{}/arrays/separate", short_name(&adapter.get_info())),
                precision: &reference_check::GPU,
                means: Means::Gpu { gpu: Arc::new(gpu), layout: Placement::separate, agreement },
            });
        }
    }
    if let Ok(command) = std::env::var("GRADCLIP_JS_HOST") {
        let host = Arc::new(JsHost::start(&command));
        let agreement = Arc::<Agreement>::default();
        for configuration in [Configuration::Default, Configuration::Recommended] {
            for (name, layout) in layouts {
                let (host, agreement) = (host.clone(), agreement.clone());
                paths.push(Path {
                    name: format!("{}/{}/{name}", host.name(), configuration.name()),
                    precision: &reference_check::GPU,
                    means: Means::Js { host, configuration, layout, agreement },
                });
            }
        }
    }
    paths.into_iter().map(Arc::new).collect()
}

/// Returns the name of an adapter in trials: `llvmpipe-vulkan` for "llvmpipe (LLVM 15.0.6, 256 bits)" on Vulkan.
fn short_name(info: &wgpu::AdapterInfo) -> String {
    let name = info.name.split(" (").next().unwrap_or_default().replace(' ', "-");
    format!("{name}-{}", info.backend).to_lowercase()
}

impl Path {
    /// Clips gradients, and returns the records or the failure, and the gradients after it.
    pub(crate) fn clip(
        &self,
        gradients: &[Vec<f32>],
        roles: &[Role],
        options: &Options,
    ) -> (Result<Vec<ClipRecord>, Failure>, Vec<Vec<f32>>) {
        let placed = |layout: &Layout| {
            let extents = roles.iter().zip(gradients).map(|(role, gradient)| (role.dtype, gradient.len()));
            layout(&extents.collect::<Vec<_>>())
        };
        let Outcome { records, gradients } = match &self.means {
            Means::Cpu => clip_groups_on_cpu(gradients, roles, &options.clips()),
            Means::Gpu { gpu, layout, .. } => {
                gpu.clip_groups(&placed(layout), gradients, roles, &options.clips())
            }
            Means::Js { host, configuration, layout, .. } => {
                let (records, after) = host.clip(*configuration, &placed(layout), gradients, roles, options);
                return (records.map_err(Failure::Message), after);
            }
        };
        (records.map_err(Failure::Error), gradients)
    }

    /// Checks that the outcome has the same bits as on the other paths of the adapter.
    pub(crate) fn check_agreement(&self, clip: String, records: &[ClipRecord], after: &[Vec<f32>]) {
        if let Means::Gpu { agreement, .. } | Means::Js { agreement, .. } = &self.means {
            agreement.check(self, clip, records, after);
        }
    }
}

/// A hash of the outcome of each clip on an adapter, which must not depend on the limits or on the layout.
#[derive(Default)]
struct Agreement(Mutex<HashMap<String, (String, u64)>>);

impl Agreement {
    fn check(&self, path: &Path, clip: String, records: &[ClipRecord], after: &[Vec<f32>]) {
        let mut hasher = DefaultHasher::new();
        bytemuck::cast_slice::<_, u8>(records).hash(&mut hasher);
        bits(after).hash(&mut hasher);
        let hash = hasher.finish();
        let (first, expected) = {
            let mut outcomes = self.0.lock().expect("no trial panics while it holds the lock");
            outcomes.entry(clip).or_insert_with(|| (path.name.clone(), hash)).clone()
        };
        assert_eq!(hash, expected, "the bits differ from those of {first}: {records:?}");
    }
}
