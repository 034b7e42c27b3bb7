//! TensorBoard's event file, by hand.
//!
//! A file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h): length u64, masked CRC-32C of the length,
//! the data, masked CRC-32C of the data, little-endian. The data are `Event` messages (tensorflow/core/util/event.proto):
//! wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5; a `Summary` has values = 1, a value
//! tag = 1 (string) and simple_value = 2 (float). The encoding is that of protocol buffers: a key is number << 3 | type,
//! with type 0 a varint, 1 eight bytes, 2 a length and bytes, 5 four bytes.

/// The first record of a file. Times are seconds since 1970, in UTC.
pub fn version(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.bytes(3, b"brain.Event:2");
    record(&event.0)
}

/// The record of one step's scalars.
pub fn scalars(wall_time: f64, step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, x) in scalars {
        let mut value = Message::default();
        value.bytes(1, tag.as_bytes());
        value.float(2, *x as f32);
        summary.bytes(1, &value.0);
    }
    let mut event = Message::default();
    event.double(1, wall_time);
    event.varint(2, step);
    event.bytes(5, &summary.0);
    record(&event.0)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// A CRC of data that hold CRCs is weak; TFRecord therefore rotates it and adds a constant.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli, reflected), bit by bit: a record has some fifty bytes.
fn crc32c(data: &[u8]) -> u32 {
    let crc = data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    });
    !crc
}

/// A message being encoded.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.0.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.0.push(x as u8);
    }

    fn varint(&mut self, field: u64, x: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(x);
    }

    fn double(&mut self, field: u64, x: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(x.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn float(&mut self, field: u64, x: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(x.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn crc32c_gives_the_published_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&up), 0x46dd_794e);
    }
}
