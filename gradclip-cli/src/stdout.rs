//! Standard output that tolerates a closed pipe.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

/// The context of a failed write to stdout.
pub(crate) const PRINT_FAILED: &str = "cannot print to stdout";

/// Buffered standard output. A reader that closes the pipe early, such as `head`, is not an error.
pub(crate) struct Stdout(BufWriter<IgnoreBrokenPipe>);

impl Stdout {
    pub(crate) fn new() -> Self {
        Self(BufWriter::new(IgnoreBrokenPipe(io::stdout().lock())))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct IgnoreBrokenPipe(StdoutLock<'static>);

impl Write for IgnoreBrokenPipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        ignore_broken_pipe(self.0.flush())
    }
}

/// Maps a broken pipe to success.
pub(crate) fn ignore_broken_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
