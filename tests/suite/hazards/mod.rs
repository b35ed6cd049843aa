//! What is dangerous, one by one.

mod accuracy;
mod buffers;
mod changing;
mod encoding;
mod tickets;
