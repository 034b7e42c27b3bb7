//! The entropy-coded bytes of a scan as bits, and Huffman codes in them.

/// Why a scan could not be read to its end.
pub(super) type Damage = &'static str;

pub(super) const ENDS_EARLY: Damage = "the picture's data ends early";
pub(super) const BAD_CODE: Damage = "a bit pattern is no Huffman code";

/// Reads bits, most significant first, up to the next marker; a byte 0xFF of data is followed by a zero in the file.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte to load; stays on the 0xFF of a marker.
    position: usize,
    /// Loaded bits, left-aligned, zeros below.
    loaded: u64,
    n_loaded: u32,
    at_marker: bool,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8], position: usize) -> Self {
        Bits { bytes, position, loaded: 0, n_loaded: 0, at_marker: false }
    }

    /// Where to look for the marker that follows.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Loads at least 32 bits, or all that there are before the marker.
    #[inline]
    fn load(&mut self) {
        if self.n_loaded >= 32 || self.at_marker {
            return;
        }
        if let Some(four) = self.bytes.get(self.position..).and_then(|rest| rest.first_chunk::<4>()) {
            let word = u32::from_be_bytes(*four);
            // A byte of `word` is 0xFF where the same byte of its complement is zero.
            let zero = !word;
            if zero.wrapping_sub(0x0101_0101) & word & 0x8080_8080 == 0 {
                self.loaded |= u64::from(word) << (32 - self.n_loaded);
                self.n_loaded += 32;
                self.position += 4;
                return;
            }
        }
        self.load_bytes();
    }

    #[cold]
    fn load_bytes(&mut self) {
        while self.n_loaded <= 56 {
            let Some(&byte) = self.bytes.get(self.position) else {
                self.at_marker = true;
                return;
            };
            let mut next = self.position + 1;
            if byte == 0xFF {
                while self.bytes.get(next) == Some(&0xFF) {
                    next += 1;
                }
                if self.bytes.get(next) != Some(&0) {
                    self.at_marker = true;
                    return;
                }
                next += 1;
            }
            self.loaded |= u64::from(byte) << (56 - self.n_loaded);
            self.n_loaded += 8;
            self.position = next;
        }
    }

    #[inline]
    fn take(&mut self, n: u32) -> Result<(), Damage> {
        if n > self.n_loaded {
            return Err(ENDS_EARLY);
        }
        self.loaded <<= n;
        self.n_loaded -= n;
        Ok(())
    }

    /// The next `n` bits as a number; `n` is at most 16.
    #[inline]
    pub fn number(&mut self, n: u32) -> Result<i32, Damage> {
        if n == 0 {
            return Ok(0);
        }
        self.load();
        let value = (self.loaded >> (64 - n)) as i32;
        self.take(n)?;
        Ok(value)
    }

    #[inline]
    pub fn bit(&mut self) -> Result<bool, Damage> {
        Ok(self.number(1)? == 1)
    }

    /// A signed value of `n` bits (T.81, F.2.2.1): a leading zero marks the negative ones.
    #[inline]
    pub fn signed(&mut self, n: u32) -> Result<i32, Damage> {
        let value = self.number(n)?;
        Ok(if n > 0 && value < 1 << (n - 1) { value - (1 << n) + 1 } else { value })
    }

    /// The next Huffman code's symbol.
    #[inline]
    pub fn symbol(&mut self, table: &Huffman) -> Result<u8, Damage> {
        self.load();
        let (length, symbol) = table.short[(self.loaded >> (64 - SHORT)) as usize];
        if length > 0 {
            self.take(length.into())?;
            return Ok(symbol);
        }
        let sixteen = (self.loaded >> 48) as u32;
        for length in SHORT + 1..=16 {
            let code = sixteen >> (16 - length);
            if code < table.end[length as usize] {
                self.take(length)?;
                let at = code.wrapping_sub(table.start[length as usize]).wrapping_add(table.offset[length as usize]);
                return table.symbols.get(at as usize).copied().ok_or(BAD_CODE);
            }
        }
        Err(if self.n_loaded < 16 { ENDS_EARLY } else { BAD_CODE })
    }

    /// Goes past restart marker `n` (0 to 7), which must come next; what is left of the last byte is padding.
    pub fn restart(&mut self, n: u8) -> Result<(), Damage> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let mut pairs = rest.windows(2).enumerate();
        let marker = pairs.find(|(_, pair)| pair[0] == 0xFF && pair[1] != 0 && pair[1] != 0xFF);
        match marker {
            Some((at, pair)) if pair[1] == 0xD0 + n => {
                *self = Bits::new(self.bytes, self.position + at + 2);
                Ok(())
            }
            Some(_) => Err("a restart marker is missing"),
            None => Err(ENDS_EARLY),
        }
    }
}

/// Codes up to this length are found by one look-up.
const SHORT: u32 = 9;

/// A Huffman table (T.81, annex C): the codes of a length are consecutive numbers.
pub(super) struct Huffman {
    /// By the next bits: length and symbol of the code they begin with, or length 0.
    short: Box<[(u8, u8); 1 << SHORT]>,
    symbols: Vec<u8>,
    /// For each length: its first code, one past its last code (0: none), where its symbols begin.
    start: [u32; 17],
    end: [u32; 17],
    offset: [u32; 17],
}

impl Huffman {
    /// From the number of codes of each length 1 to 16 and their symbols; None where the lengths fit no code.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        if symbols.len() > 256 {
            return None;
        }
        let mut short = Box::new([(0, 0); 1 << SHORT]);
        let (mut start, mut end, mut offset) = ([0; 17], [0; 17], [0; 17]);
        let (mut code, mut at) = (0u32, 0u32);
        for (length, &count) in (1u32..).zip(counts) {
            let i = length as usize;
            (start[i], offset[i]) = (code, at);
            if count > 0 {
                end[i] = code + u32::from(count);
                if end[i] > 1 << length {
                    return None;
                }
            }
            for _ in 0..count {
                let symbol = *symbols.get(at as usize)?;
                if length <= SHORT {
                    let first = (code << (SHORT - length)) as usize;
                    short[first..first + (1 << (SHORT - length))].fill((length as u8, symbol));
                }
                (code, at) = (code + 1, at + 1);
            }
            code <<= 1;
        }
        Some(Huffman { short, symbols: symbols.to_vec(), start, end, offset })
    }
}
