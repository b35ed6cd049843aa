// Tiles of gradients whose columns have their own norms. The host stores each as two entries of its table of tiles.
//
// provides: ColumnTile

// Norm pass: a block of adjacent columns and consecutive rows, one invocation for each column.
// Elementwise pass: a run of consecutive elements, as a `Tile`.
struct ColumnTile {
    slot: u32,          // the slot of the window
    first: u32,         // the index of the first element, from the start of the window
    count: u32,         // norm pass: the number of columns of the block; elementwise pass: the number of elements
    target_index: u32,  // norm pass: the partial of the first column; elementwise pass: the record of column 0
    slot_again: u32,
    columns: u32,       // the number of columns of the gradient
    extent: u32,        // norm pass: the number of rows of the block; elementwise pass: the column of the first element
    target_stride: u32, // norm pass: the distance between the partials of neighbouring columns
}
