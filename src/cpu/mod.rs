//! stub
use crate::*;
/// s
pub fn clip(_g: &mut [&mut [f32]], _c: Clip) -> Result<Option<ClipRecord>, Error> {
    unimplemented!()
}
/// s
pub fn threads() -> usize {
    1
}
