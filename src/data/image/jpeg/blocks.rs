//! Scans to coefficients, and coefficients to the samples of each channel.
//!
//! A channel of a sequential file comes in one scan and goes through the inverse DCT at once. A progressive file's
//! coefficients grow over several scans (T.81, annex G) and are kept until the end.

use super::bits::{Bits, Damage, Huffman};
use super::idct;
use super::segments::{Component, Frame, NATURAL, Part, Scan, Tables};
use rayon::prelude::*;

pub(super) type Block = [i16; 64];

/// Samples of one channel, `stride` to a row, whole blocks.
pub(super) struct Samples {
    pub values: Vec<u8>,
    pub stride: usize,
}

/// A channel while scans come in.
struct Plane {
    samples: Samples,
    /// Progressive files only: all blocks, row by row.
    blocks: Vec<Block>,
    /// The table that was valid at the channel's first scan.
    quant: Option<[u16; 64]>,
    /// For each coefficient, in zigzag order: the bits still to come, None before its first scan.
    missing_bits: [Option<u8>; 64],
}

pub(super) struct Planes(Vec<Plane>);

/// What a restart marker resets.
#[derive(Default)]
struct Running {
    /// The last DC value of each channel.
    dc: [i32; 4],
    /// Blocks to come that have nothing more in this scan.
    empty_blocks: i32,
}

impl Planes {
    pub fn new(frame: &Frame) -> Self {
        let plane = |c: &Component| {
            let blocks = c.stored_across * c.stored_down;
            Plane {
                samples: Samples { values: vec![0; blocks * 64], stride: c.stored_across * 8 },
                blocks: if frame.progressive { vec![[0; 64]; blocks] } else { Vec::new() },
                quant: None,
                missing_bits: [None; 64],
            }
        };
        Planes(frame.components.iter().map(plane).collect())
    }

    /// Reads the scan whose data begins at `position`; returns where to look for the next marker.
    pub fn scan(
        &mut self,
        frame: &Frame,
        tables: &Tables,
        scan: &Scan,
        bytes: &[u8],
        position: usize,
    ) -> Result<usize, String> {
        for part in &scan.parts {
            let (plane, table) = (&mut self.0[part.component], frame.components[part.component].quant);
            if plane.quant.is_none() {
                plane.quant = tables.quant[table];
            }
            if plane.quant.is_none() {
                return Err(format!("the JPEG file uses quantisation table {table} without defining it"));
            }
            plane.missing_bits[scan.first..=scan.last].fill(Some(scan.low));
        }
        let needs_dc = scan.first == 0 && scan.high == 0;
        let needs_ac = scan.last > 0;
        let missing =
            |part: &Part| (needs_dc && tables.dc[part.dc].is_none()) || (needs_ac && tables.ac[part.ac].is_none());
        if scan.parts.iter().any(missing) {
            return Err("the JPEG file uses a Huffman table without defining it".into());
        }
        let mut bits = Bits::new(bytes, position);
        let done = if frame.progressive {
            self.progressive(frame, tables, scan, &mut bits)
        } else {
            self.sequential(frame, tables, scan, &mut bits)
        };
        done.map_err(|damage| {
            format!("the JPEG file is truncated or damaged: {damage} (near byte {})", bits.position())
        })?;
        Ok(bits.position())
    }

    fn sequential(&mut self, frame: &Frame, tables: &Tables, scan: &Scan, bits: &mut Bits) -> Result<(), Damage> {
        walk(frame, scan, tables.restart_interval, bits, |bits, running, part, x, y| {
            let plane = &mut self.0[part.component];
            let (Some(dc), Some(ac), Some(quant)) = (&tables.dc[part.dc], &tables.ac[part.ac], &plane.quant) else {
                return Err("a table is missing");
            };
            let mut block = [0; 64];
            let only_dc = sequential_block(bits, dc, ac, &mut running.dc[part.component], &mut block)?;
            let samples = &mut plane.samples;
            let at = y * 8 * samples.stride + x * 8;
            if only_dc {
                idct::flat(block[0], quant[0], &mut samples.values[at..], samples.stride);
            } else {
                idct::block(&block, quant, &mut samples.values[at..], samples.stride);
            }
            Ok(())
        })
    }

    fn progressive(&mut self, frame: &Frame, tables: &Tables, scan: &Scan, bits: &mut Bits) -> Result<(), Damage> {
        walk(frame, scan, tables.restart_interval, bits, |bits, running, part, x, y| {
            let across = frame.components[part.component].stored_across;
            let block = &mut self.0[part.component].blocks[y * across + x];
            match (scan.first, scan.high, &tables.dc[part.dc], &tables.ac[part.ac]) {
                (0, 0, Some(table), _) => {
                    let last = &mut running.dc[part.component];
                    let n = bits.symbol(table)?;
                    *last = last.wrapping_add(bits.signed(n.into())?);
                    block[0] = (*last << scan.low) as i16;
                    Ok(())
                }
                (0, 1.., _, _) => {
                    if bits.bit()? {
                        block[0] |= 1 << scan.low;
                    }
                    Ok(())
                }
                (_, 0, _, Some(table)) => ac_first(bits, table, scan, &mut running.empty_blocks, block),
                (_, 1.., _, Some(table)) => ac_refined(bits, table, scan, &mut running.empty_blocks, block),
                _ => Err("a table is missing"),
            }
        })
    }

    /// The samples of each channel, once all scans were read.
    pub fn finish(self, frame: &Frame) -> Result<Vec<Samples>, String> {
        let planes = self.0.into_iter().zip(&frame.components);
        planes
            .map(|(plane, component)| {
                let Plane { mut samples, blocks, quant, missing_bits } = plane;
                let unfinished = missing_bits.iter().position(|bits| *bits != Some(0));
                let (None, Some(quant)) = (unfinished, quant) else {
                    return Err(format!(
                        "the JPEG file is unfinished: it ends without all data of channel {}",
                        component.id
                    ));
                };
                let (stride, across) = (samples.stride, component.stored_across);
                // Empty for a sequential file: its samples are there.
                let rows = blocks.par_chunks(across).zip(samples.values.par_chunks_mut(stride * 8));
                rows.for_each(|(blocks, rows)| {
                    for (x, block) in blocks.iter().enumerate() {
                        idct::block(block, &quant, &mut rows[x * 8..], stride);
                    }
                });
                Ok(samples)
            })
            .collect()
    }
}

/// Calls `block` for every block of the scan in order: with the part of the scan, and the block's column and row.
fn walk(
    frame: &Frame,
    scan: &Scan,
    restart_interval: usize,
    bits: &mut Bits,
    mut block: impl FnMut(&mut Bits, &mut Running, &Part, usize, usize) -> Result<(), Damage>,
) -> Result<(), Damage> {
    let alone = match scan.parts.as_slice() {
        [part] => Some(&frame.components[part.component]),
        _ => None,
    };
    // A channel that is alone in its scan comes without the blocks that only fill up groups.
    let (across, down) = alone.map_or((frame.groups_across, frame.groups_down), |c| (c.blocks_across, c.blocks_down));
    let mut running = Running::default();
    let (mut until_restart, mut restarts) = (restart_interval, 0u8);
    for group_y in 0..down {
        for group_x in 0..across {
            if restart_interval > 0 {
                if until_restart == 0 {
                    bits.restart(restarts % 8)?;
                    restarts = restarts.wrapping_add(1);
                    running = Running::default();
                    until_restart = restart_interval;
                }
                until_restart -= 1;
            }
            for part in &scan.parts {
                let component = &frame.components[part.component];
                let (h, v) = if alone.is_some() { (1, 1) } else { (component.h, component.v) };
                for y in 0..v {
                    for x in 0..h {
                        block(bits, &mut running, part, group_x * h + x, group_y * v + y)?;
                    }
                }
            }
        }
    }
    Ok(())
}

const TOO_MANY: Damage = "a block has more than 64 coefficients";

/// T.81, F.2.2. Returns whether all but the first coefficient are zero.
#[inline]
fn sequential_block(
    bits: &mut Bits,
    dc: &Huffman,
    ac: &Huffman,
    last_dc: &mut i32,
    block: &mut Block,
) -> Result<bool, Damage> {
    let n = bits.symbol(dc)?;
    *last_dc = last_dc.wrapping_add(bits.signed(n.into())?);
    block[0] = *last_dc as i16;
    let mut only_dc = true;
    let mut k = 1;
    while k < 64 {
        let code = bits.symbol(ac)?;
        let (run, n) = (usize::from(code >> 4), u32::from(code & 15));
        if n == 0 {
            if run != 15 {
                break;
            }
            k += 16;
            continue;
        }
        k += run;
        let &at = NATURAL.get(k).ok_or(TOO_MANY)?;
        block[usize::from(at)] = bits.signed(n)? as i16;
        only_dc = false;
        k += 1;
    }
    Ok(only_dc)
}

/// T.81, G.1.2.2: the first scan of a range of coefficients.
fn ac_first(
    bits: &mut Bits,
    table: &Huffman,
    scan: &Scan,
    empty_blocks: &mut i32,
    block: &mut Block,
) -> Result<(), Damage> {
    if *empty_blocks > 0 {
        *empty_blocks -= 1;
        return Ok(());
    }
    let mut k = scan.first;
    while k <= scan.last {
        let code = bits.symbol(table)?;
        let (run, n) = (usize::from(code >> 4), u32::from(code & 15));
        if n > 0 {
            k += run;
            let &at = NATURAL.get(k).ok_or(TOO_MANY)?;
            block[usize::from(at)] = (bits.signed(n)? << scan.low) as i16;
            k += 1;
        } else if run == 15 {
            k += 16;
        } else {
            *empty_blocks = (1 << run) - 1 + bits.number(run as u32)?;
            break;
        }
    }
    Ok(())
}

/// T.81, G.1.2.3: one more bit for a range of coefficients. A bit follows for each that is not zero yet; runs count
/// only those that are.
fn ac_refined(
    bits: &mut Bits,
    table: &Huffman,
    scan: &Scan,
    empty_blocks: &mut i32,
    block: &mut Block,
) -> Result<(), Damage> {
    let one = 1i16 << scan.low;
    let mut k = scan.first;
    if *empty_blocks == 0 {
        while k <= scan.last {
            let code = bits.symbol(table)?;
            let (mut run, n) = (i32::from(code >> 4), code & 15);
            let mut fresh = 0;
            if n > 0 {
                fresh = if bits.bit()? { one } else { -one };
            } else if run < 15 {
                *empty_blocks = (1 << run) + bits.number(run as u32)?;
                break;
            }
            while k <= scan.last {
                let value = &mut block[usize::from(NATURAL[k])];
                if *value != 0 {
                    refine(bits, one, value)?;
                } else if run == 0 {
                    *value = fresh;
                    break;
                } else {
                    run -= 1;
                }
                k += 1;
            }
            if k > scan.last && fresh != 0 {
                return Err(TOO_MANY);
            }
            k += 1;
        }
    }
    if *empty_blocks > 0 {
        while k <= scan.last {
            let value = &mut block[usize::from(NATURAL[k])];
            if *value != 0 {
                refine(bits, one, value)?;
            }
            k += 1;
        }
        *empty_blocks -= 1;
    }
    Ok(())
}

/// Reads a bit that, where set, moves `value` away from zero.
fn refine(bits: &mut Bits, one: i16, value: &mut i16) -> Result<(), Damage> {
    if bits.bit()? && *value & one == 0 {
        *value = value.wrapping_add(if *value > 0 { one } else { -one });
    }
    Ok(())
}
