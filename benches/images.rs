//! Decoding, resizing and cutting up a photo of 1000 x 667 pixels. Run with `cargo bench --bench images`;
//! without a photo, decoding is timed on the small golden files.
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::Path;
use vlm::data::image::{PatchSpec, Rgb, decode, resize};

fn images(c: &mut Criterion) {
    let (width, height) = (1000, 667);
    let pixels = (0..width * height * 3).map(|i| ((i * i / 7 + 5 * i) % 256) as u8).collect();
    let photo = Rgb { width, height, pixels };
    let mut group = c.benchmark_group("images");
    group.throughput(Throughput::Elements((width * height) as u64));
    group.bench_function("resize 1000x667 to 992x672", |b| b.iter(|| resize(black_box(&photo), 672, 992)));
    group.bench_function("resize 1000x667 to 512x352", |b| b.iter(|| resize(black_box(&photo), 352, 512)));
    let spec = PatchSpec::default();
    group.bench_function("patches of 1000x667, resize included", |b| b.iter(|| spec.patches(black_box(&photo))));
    for name in ["444.jpg", "420.jpg", "420_progressive.jpg"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images").join(name);
        let bytes = std::fs::read(&path).expect("a golden file");
        let picture = decode(&bytes, &path).expect("a picture");
        group.throughput(Throughput::Elements((picture.width * picture.height) as u64));
        group.bench_function(format!("decode {name}"), |b| b.iter(|| decode(black_box(&bytes), &path)));
    }
    group.finish();
}

criterion_group!(benches, images);
criterion_main!(benches);
