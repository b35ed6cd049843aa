//! What is dangerous, one by one.

mod accuracy;
mod buffers;
mod encoding;
mod tickets;
