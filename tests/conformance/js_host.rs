//! The paths through the JavaScript package: a process with WebGPU and the package runs the clips of the table.
//!
//! Each side sends a line of JSON, followed by bytes: of the buffers; and of the records and the buffers after the clip. The first
//! line of the process has the name of its adapter.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use gradclip::{ClipRecord, DType};
use serde_json::{Value, json};

use crate::case::Options;
use crate::common::placement::{GUARD, Placement, Span, size};
use crate::common::role::Role;

/// A process that clips.
pub(crate) struct JsHost {
    name: String,
    pipes: Mutex<Pipes>,
}

struct Pipes {
    /// It ends when its input does.
    _process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// The limits with which the device is requested.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Configuration {
    /// None.
    Default,
    /// Those of `Clipper.recommendedLimits`.
    Recommended,
}

impl Configuration {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Recommended => "recommended",
        }
    }
}

impl JsHost {
    /// Starts a process: a program and its arguments, separated by spaces.
    pub(crate) fn start(command: &str) -> Self {
        let mut words = command.split(' ');
        let mut process = Command::new(words.next().unwrap_or_default())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("GRADCLIP_JS_HOST={command}: {error}"));
        let to = process.stdin.take().expect("it is piped");
        let from = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut pipes = Pipes { _process: process, to, from };
        let name = pipes.line()["name"].as_str().expect("the name of the adapter").to_owned();
        Self { name, pipes: Mutex::new(pipes) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Clips gradients in guarded buffers. Returns the records or the message of the error, and the gradients after it.
    pub(crate) fn clip(
        &self,
        configuration: Configuration,
        placement: &Placement,
        gradients: &[Vec<f32>],
        roles: &[Role],
        options: &Options,
    ) -> (Result<Vec<ClipRecord>, String>, Vec<Vec<f32>>) {
        let dtypes: Vec<_> = roles.iter().map(|role| role.dtype).collect();
        let mut contents = placement.contents(&[GUARD], &dtypes, gradients);
        let mut described: Vec<_> =
            placement.spans.iter().zip(roles).map(|(span, role)| describe(span, role)).collect();
        for (gradient, parameter) in
            described.iter_mut().zip(roles).filter_map(|(gradient, role)| Some((gradient, role.parameter?)))
        {
            let placement = Placement::packed(&[(DType::F32, parameter.len())]);
            let (_, units) = &placement.spans[0];
            gradient["parameter"] = range(contents.len(), units.start, parameter.len());
            contents.extend(placement.contents(&[GUARD], &[DType::F32], &[parameter.to_vec()]));
        }
        let request = json!({
            "configuration": configuration.name(),
            "bytes": contents.iter().map(|units| size_of_val(&units[..])).collect::<Vec<_>>(),
            "gradients": described,
            "clips": options.clips_in_js(),
        });

        // A trial that panics while it holds the lock leaves the others without an answer.
        let mut pipes = self.pipes.lock().expect("the process answered all earlier trials");
        pipes.send(&request, &contents);
        let answer = pipes.line();
        let count = answer["records"].as_u64().and_then(|count| usize::try_from(count).ok());
        let records = pipes.values(count.expect("the number of records"));
        let records = answer["error"].as_str().map_or(Ok(records), |message| Err(message.to_owned()));
        let after: Vec<Vec<u16>> = contents.iter().map(|units| pipes.values(units.len())).collect();
        drop(pipes);
        let (after, parameters) = after.split_at(placement.buffers.len());
        assert_eq!(parameters, &contents[after.len()..], "a parameter has changed");
        (records, placement.gradients_in(&[GUARD], &dtypes, after))
    }
}

impl Pipes {
    fn send(&mut self, request: &Value, contents: &[Vec<u16>]) {
        writeln!(self.to, "{request}").expect("the process reads");
        for units in contents {
            self.to.write_all(bytemuck::cast_slice(units)).expect("the process reads");
        }
        self.to.flush().expect("the process reads");
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the process writes");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the process wrote {line:?} and no answer"))
    }

    /// Reads values in the byte order of the machine, which is that of WebAssembly on all machines with WebGPU.
    fn values<T: bytemuck::Pod>(&mut self, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        self.from.read_exact(bytemuck::cast_slice_mut(&mut values)).expect("the process writes");
        values
    }
}

fn describe((buffer, units): &Span, role: &Role) -> Value {
    let mut gradient = range(*buffer, units.start, units.len() / size(role.dtype));
    gradient["dtype"] = role.dtype.to_string().into();
    gradient["group"] = role.group.into();
    gradient["measured"] = role.measured.into();
    gradient["scaled"] = role.scaled.into();
    gradient["rows"] = role.rows.into();
    gradient["columns"] = role.columns.into();
    gradient
}

fn range(buffer: usize, unit: usize, length: usize) -> Value {
    json!({ "buffer": buffer, "byteOffset": 2 * unit, "length": length })
}
