//! Decompression of a body, piece by piece.

use std::io::{Error, ErrorKind, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use http_body::Frame;

/// Compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    /// The zlib format (RFC 1950), or raw DEFLATE (RFC 1951), which many clients send instead.
    Deflate,
}

/// Failure to decompress a body.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the compressed body is too large")]
    TooLarge,
    #[error("the body cannot be decompressed: {0}")]
    Broken(Error),
}

/// Number of bytes that are decompressed at once. They grow to up to 1032 times as many.
const PIECE_BYTES: usize = 512;

/// A body that decompresses another one.
pub struct Decoding {
    body: Body,
    stages: Vec<Stage>,
    ended: bool,
}

/// Decompressor of one encoding, with its input.
struct Stage {
    decoder: Decoder,
    /// Bytes that are not decompressed yet.
    waiting: Bytes,
    /// Number of bytes that it still accepts. A body within the limit is not larger compressed, but for a few bytes.
    left_bytes: usize,
    finished: bool,
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Deflate(Deflate),
}

impl Decoding {
    /// `encodings`: the last applied one first. `limit_bytes`: maximum size of the decompressed body.
    pub fn new(body: Body, encodings: Vec<Encoding>, limit_bytes: usize) -> Self {
        let stages = encodings.into_iter().map(|encoding| Stage {
            decoder: match encoding {
                Encoding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
                Encoding::Deflate => Decoder::Deflate(Deflate::default()),
            },
            waiting: Bytes::new(),
            left_bytes: limit_bytes.saturating_add(limit_bytes / 64 + 1024),
            finished: false,
        });
        Self {
            body,
            stages: stages.collect(),
            ended: false,
        }
    }

    /// Does one step of work; `None` when more of the body is needed. The last stage with waiting bytes goes first, so
    /// that no stage is given more before it has decompressed all that it has.
    fn work(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let Some(index) = self
            .stages
            .iter()
            .rposition(|stage| !stage.waiting.is_empty())
        else {
            return if self.ended { self.finish() } else { Ok(None) };
        };
        let Some(stage) = self.stages.get_mut(index) else {
            return Ok(None);
        };
        let piece = stage.waiting.split_to(stage.waiting.len().min(PIECE_BYTES));
        let out = stage.decoder.decode(&piece).map_err(DecodeError::Broken)?;
        self.pass_on(index, out).map(Some)
    }

    /// Ends the next stage, once the body has ended.
    fn finish(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let Some(index) = self.stages.iter().position(|stage| !stage.finished) else {
            return Ok(None);
        };
        let Some(stage) = self.stages.get_mut(index) else {
            return Ok(None);
        };
        stage.finished = true;
        let out = stage.decoder.finish().map_err(DecodeError::Broken)?;
        self.pass_on(index, out).map(Some)
    }

    /// Passes the output of a stage to the next one, or returns that of the last one.
    fn pass_on(&mut self, index: usize, out: Vec<u8>) -> Result<Bytes, DecodeError> {
        match self.stages.get_mut(index + 1) {
            Some(next) => {
                next.take(out.into())?;
                Ok(Bytes::new())
            }
            None => Ok(out.into()),
        }
    }

    fn has_work(&self) -> bool {
        let waits = |stage: &Stage| !stage.waiting.is_empty() || (self.ended && !stage.finished);
        self.stages.iter().any(waits)
    }
}

impl Stage {
    fn take(&mut self, bytes: Bytes) -> Result<(), DecodeError> {
        self.left_bytes = self
            .left_bytes
            .checked_sub(bytes.len())
            .ok_or(DecodeError::TooLarge)?;
        self.waiting = bytes;
        Ok(())
    }
}

impl http_body::Body for Decoding {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            while self.has_work() {
                match self.work() {
                    Ok(Some(out)) if !out.is_empty() => {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                }
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let (Ok(data), Some(first)) = (frame.into_data(), self.stages.first_mut())
                        && let Err(error) = first.take(data)
                    {
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.ended = true,
            }
        }
    }
}

impl Decoder {
    fn decode(&mut self, piece: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Decoder::Gzip(decoder) => {
                decoder.write_all(piece)?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Decoder::Deflate(decoder) => decoder.decode(piece),
        }
    }

    /// Ends the input, and refuses one that is incomplete.
    fn finish(&mut self) -> Result<Vec<u8>, Error> {
        match self {
            Decoder::Gzip(decoder) => {
                decoder.try_finish()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Decoder::Deflate(decoder) if decoder.ended => Ok(Vec::new()),
            Decoder::Deflate(_) => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Decompressor of `deflate`, in either of its forms.
#[derive(Default)]
struct Deflate {
    /// First byte, until the second one arrives, which tells the forms apart.
    first: Vec<u8>,
    decoder: Option<Decompress>,
    ended: bool,
}

impl Deflate {
    fn decode(&mut self, piece: &[u8]) -> Result<Vec<u8>, Error> {
        let mut input = std::mem::take(&mut self.first);
        input.extend_from_slice(piece);
        let decoder = match (&mut self.decoder, &input[..]) {
            (Some(decoder), _) => decoder,
            (none, [method, flags, ..]) => {
                // RFC 1950, section 2.2: the method is 8, and the two bytes are a multiple of 31.
                let is_zlib =
                    method & 0x0F == 8 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31);
                none.insert(Decompress::new(is_zlib))
            }
            (None, _) => {
                self.first = input;
                return Ok(Vec::new());
            }
        };
        let mut out = Vec::with_capacity(4096);
        let mut rest = &input[..];
        while !self.ended {
            out.reserve(4096);
            let (taken, made) = (decoder.total_in(), out.len());
            let status = decoder.decompress_vec(rest, &mut out, FlushDecompress::None)?;
            let taken = usize::try_from(decoder.total_in() - taken).unwrap_or(rest.len());
            rest = rest.get(taken..).unwrap_or_default();
            self.ended = status == Status::StreamEnd;
            if taken == 0 && out.len() == made || rest.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
        if self.ended && !rest.is_empty() {
            return Err(Error::other("there are bytes after its end"));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use futures::stream;
    use http_body_util::BodyExt;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(data: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    async fn decode(data: &[u8], encodings: &[Encoding], frame: usize) -> Result<Vec<u8>, String> {
        let frames: Vec<_> = data
            .chunks(frame)
            .map(|chunk| Ok::<_, Error>(Bytes::copy_from_slice(chunk)))
            .collect();
        let body = Body::from_stream(stream::iter(frames));
        let decoding = Decoding::new(body, encodings.to_vec(), 1 << 20);
        let collected = decoding.collect().await;
        collected
            .map(|body| body.to_bytes().to_vec())
            .map_err(|error| error.to_string())
    }

    fn text() -> Vec<u8> {
        let words = (0..20_000).map(|i: u32| i.wrapping_mul(2_654_435_761).to_string());
        words.collect::<String>().into_bytes()
    }

    #[tokio::test]
    async fn every_encoding_is_undone_at_any_frame_size() {
        let text = text();
        for frame in [1, 7, 100_000] {
            for (data, encodings) in [
                (gzip(&text), &[Encoding::Gzip][..]),
                (
                    [gzip(&text[..99]), gzip(&text[99..])].concat(),
                    &[Encoding::Gzip],
                ),
                (zlib(&text), &[Encoding::Deflate]),
                (raw(&text), &[Encoding::Deflate]),
                (zlib(&gzip(&text)), &[Encoding::Deflate, Encoding::Gzip]),
            ] {
                let got = decode(&data, encodings, frame).await;
                assert!(
                    got == Ok(text.clone()),
                    "{encodings:?} in frames of {frame}"
                );
            }
        }
    }

    #[tokio::test]
    async fn damaged_and_incomplete_bodies_are_refused() {
        let text = text();
        for (data, encoding) in [
            (gzip(&text), Encoding::Gzip),
            (zlib(&text), Encoding::Deflate),
            (raw(&text), Encoding::Deflate),
        ] {
            let mut damaged = data.clone();
            damaged[data.len() / 2] ^= 0xFF;
            let longer = [&data[..], b"more"].concat();
            for bad in [&data[..data.len() - 1], &damaged, &longer, b"{\"a\": 1}"] {
                let got = decode(bad, &[encoding], 1000).await;
                // Raw DEFLATE has no checksum, so a flipped bit may leave it valid.
                assert!(got != Ok(text.clone()), "{encoding:?}");
            }
        }
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            assert!(decode(b"x", &[encoding], 9).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_decompression_bomb_comes_in_small_frames() {
        let once = gzip(&vec![b' '; 64 << 20]);
        let twice = gzip(&once);
        for (data, encodings) in [
            (once.clone(), vec![Encoding::Gzip]),
            (zlib(&vec![b' '; 64 << 20]), vec![Encoding::Deflate]),
            (twice, vec![Encoding::Gzip, Encoding::Gzip]),
        ] {
            let mut decoding = Decoding::new(Body::from(data), encodings, 1 << 20);
            for _ in 0..20 {
                let frame = decoding.frame().await.unwrap().unwrap();
                assert!(frame.into_data().unwrap().len() <= PIECE_BYTES * 1100);
            }
        }
    }

    #[tokio::test]
    async fn more_compressed_bytes_than_the_limit_are_refused() {
        // Empty stored blocks: their decompressed size stays zero.
        let nothing = [0, 0, 0, 0xFF, 0xFF].repeat(400_000);
        let refused = decode(&nothing, &[Encoding::Deflate], 10_000).await;
        assert!(refused.unwrap_err().contains("too large"));
    }
}
