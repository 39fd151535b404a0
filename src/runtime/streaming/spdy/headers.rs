//! Header blocks: names and values, compressed by zlib with a dictionary that both ends know, from the first block to the
//! last of a connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Uncompressed, of one block.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// The words of the dictionary in SPDY/3 draft section 2.6.10.1 that carry their length in front.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// And its end, which is plain text.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
    charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut bytes = Vec::with_capacity(1423);
        for word in WORDS.split_whitespace() {
            let word = word.replace('_', " ");
            bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
            bytes.extend_from_slice(word.as_bytes());
        }
        bytes.extend_from_slice(TAIL.as_bytes());
        bytes
    })
}

pub struct Compressor(Compress);

impl Compressor {
    pub fn new() -> io::Result<Self> {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(dictionary()).map_err(io::Error::other)?;
        Ok(Self(zlib))
    }

    pub fn compress(&mut self, headers: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
        let mut plain = u32::try_from(headers.len()).unwrap_or(0).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let before = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(plain.len());
            out.reserve(256);
            // A sync flush ends the block on a byte, and the stream goes on behind it.
            self.0.compress_vec(&plain[taken..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
            if out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

pub struct Decompressor(Decompress);

impl Decompressor {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub fn decompress(&mut self, block: &[u8]) -> io::Result<BTreeMap<String, String>> {
        let mut plain = Vec::with_capacity(1024);
        let before = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(block.len());
            match self.0.decompress_vec(&block[taken..], &mut plain, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(dictionary()).map_err(io::Error::other)?;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
                Ok(Status::StreamEnd) => break,
                Ok(Status::Ok | Status::BufError) => {}
            }
            let all_taken = usize::try_from(self.0.total_in() - before).unwrap_or(0) == block.len();
            if all_taken && plain.len() < plain.capacity() {
                break;
            }
            if plain.len() > BLOCK_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "header block is too long"));
            }
            plain.reserve(1024);
        }
        parse(&plain).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "header block is not well formed"))
    }
}

fn parse(mut plain: &[u8]) -> Option<BTreeMap<String, String>> {
    let number = |plain: &mut &[u8]| {
        let (head, rest) = plain.split_first_chunk::<4>()?;
        *plain = rest;
        Some(u32::from_be_bytes(*head) as usize)
    };
    let text = |plain: &mut &[u8]| {
        let length = number(plain)?;
        let (head, rest) = plain.split_at_checked(length)?;
        *plain = rest;
        Some(String::from_utf8_lossy(head).to_lowercase())
    };
    let mut headers = BTreeMap::new();
    for _ in 0..number(&mut plain)? {
        let name = text(&mut plain)?;
        headers.insert(name, text(&mut plain)?);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        // What zlib puts in front of a stream to name the dictionary.
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_follow_each_other() {
        let (mut compressor, mut decompressor) = (Compressor::new().unwrap(), Decompressor::new());
        for number in 0..50 {
            let headers: BTreeMap<String, String> = [
                ("streamtype".to_owned(), "data".to_owned()),
                ("port".to_owned(), number.to_string()),
                ("filler".to_owned(), "x".repeat(number * 100)),
            ]
            .into();
            let block = compressor.compress(&headers).unwrap();
            assert_eq!(decompressor.decompress(&block).unwrap(), headers);
        }
        assert!(decompressor.decompress(b"rubbish").is_err());
    }
}
