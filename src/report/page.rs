//! The page, written piece by piece: head, sections, gallery, pictures, data, script.

use super::gallery::{Gallery, Thumbnails};
use super::html::{script_json, text};
use super::sections::sections;
use super::sources::Sources;
use crate::base::Result;
use crate::io::atomic;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::path::Path;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("gallery.js");
/// Pictures of one script element: what is decoded from text to pictures at once.
const BLOCK: usize = 64;

/// Writes the page; its bytes.
pub fn write(out: &Path, title: &str, found: &Sources, gallery: &Gallery, thumbnails: &Thumbnails) -> Result<u64> {
    let names = found.evaluation_names();
    let sections = sections(found, &names, gallery);
    let mut bytes = 0;
    atomic::write_file(out, |file| {
        let mut write = |text: &str| {
            bytes += text.len() as u64;
            file.write(text.as_bytes())
        };
        write(&head(title))?;
        write("<nav aria-label=\"Parts of this page\"><ul>")?;
        let shown = !gallery.photos.is_empty();
        let links = sections.iter().map(|s| (s.id, s.title)).chain(shown.then_some(("gallery", "Photos")));
        for (id, title) in links {
            write(&format!("<li><a href=\"#{id}\">{title}</a></li>"))?;
        }
        write("</ul></nav>\n<main id=\"main\">\n")?;
        for s in &sections {
            let (id, title) = (s.id, s.title);
            write(&format!("<section id=\"{id}\" aria-labelledby=\"{id}-h\"><h2 id=\"{id}-h\">{title}</h2>\n"))?;
            write(&s.body)?;
            write("\n</section>\n")?;
        }
        if shown {
            write(GALLERY)?;
        }
        write("</main>\n")?;
        write(DIALOG)?;
        pictures(&mut write, thumbnails)?;
        let data = script_json(&gallery.json(found, &names, thumbnails));
        write(&format!("<script type=\"application/json\" id=\"data\">{data}</script>\n"))?;
        write(&format!("<script>{SCRIPT}</script>\n</body>\n</html>\n"))
    })?;
    Ok(bytes)
}

fn head(title: &str) -> String {
    let title = text(title);
    let hash = STANDARD.encode(Sha256::digest(SCRIPT));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data: blob:; style-src \
         'unsafe-inline'; script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\n<header class=\"top\"><h1>{title}</h1>\
         <button type=\"button\" id=\"theme\" hidden>Theme: system</button></header>\n"
    )
}

/// Base64 lines, a block of pictures per element, so that nothing is decoded before it is looked at.
fn pictures(write: &mut dyn FnMut(&str) -> Result<()>, thumbnails: &Thumbnails) -> Result<()> {
    for block in thumbnails.pictures.chunks(BLOCK) {
        let lines: Vec<String> =
            block.iter().map(|p| p.as_ref().map_or(String::new(), |bytes| STANDARD.encode(bytes))).collect();
        write(&format!("<script type=\"text/plain\" class=\"pictures\">{}</script>\n", lines.join("\n")))?;
    }
    Ok(())
}

const GALLERY: &str = r#"<section id="gallery" aria-labelledby="gallery-h"><h2 id="gallery-h">Photos</h2>
<noscript><p class="note">The photos are shown by a script, and scripts are turned off.</p></noscript>
<form id="filters" role="search" aria-label="Filter photos">
<div><label class="wide">Search <input id="f-text" type="search" placeholder="name, label, answer, tag" autocomplete="off"></label>
<label>Order <select id="f-order"><option value="">as in the set</option><option value="sure">surest first</option><option value="unsure">least sure first</option></select></label>
<button type="reset">Clear</button></div>
<div><label>Evaluation <select id="f-eval"></select></label>
<label>Verdict <select id="f-verdict"><option value="">any</option><option value="1">right</option><option value="0">wrong</option></select></label>
<label>Label <select id="f-label"><option value="">any</option></select></label>
<label>Prediction <select id="f-prediction"><option value="">any</option></select></label>
<label>Tag <select id="f-tag"><option value="">any</option></select></label></div>
</form>
<p id="count" role="status" aria-live="polite"></p>
<p class="keys">Keys: <kbd>/</kbd> search, arrows to move, <kbd>Enter</kbd> to open a photo.</p>
<div id="grid" role="list" aria-label="Photos"></div>
</section>
"#;

const DIALOG: &str = r#"<dialog id="detail" aria-labelledby="detail-h">
<div class="bar"><h2 id="detail-h"></h2><button type="button" id="detail-previous" aria-label="Previous photo">←</button><button type="button" id="detail-next" aria-label="Next photo">→</button><button type="button" id="detail-close" aria-label="Close">✕</button></div>
<div class="inside"><img id="detail-image" alt=""><div id="detail-body"></div></div>
</dialog>
"#;
