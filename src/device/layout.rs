//! Where values lie in an arena, before there is one.

/// Where one value lies in its arena. Offsets are multiples of [`ALIGNMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    pub offset: usize,
    pub bytes: usize,
}

impl Place {
    pub fn end(&self) -> usize {
        self.offset + self.bytes
    }

    pub fn overlaps(&self, other: &Place) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    pub fn contains(&self, other: &Place) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }
}

/// Every place begins at a multiple of this: what vector loads and bulk copies of any device ask for.
pub const ALIGNMENT: usize = 256;

/// The places of all values of one generation, by slot, and the bytes that the arena needs.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub generation: u32,
    pub places: Vec<Place>,
    pub bytes: usize,
}

impl Layout {
    /// Values side by side, none sharing bytes.
    pub fn sequential(generation: u32, sizes: impl IntoIterator<Item = usize>) -> Layout {
        let mut layout = Layout { generation, ..Layout::default() };
        for bytes in sizes {
            layout.places.push(Place { offset: layout.bytes, bytes });
            layout.bytes += bytes.next_multiple_of(ALIGNMENT);
        }
        layout
    }
}
