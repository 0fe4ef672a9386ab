//! From the model's vectors to those that a client asked for.

use gridwork_proto::v1::InfoResponse;

use crate::error::ApiError;

/// What is done to each vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorShape {
    /// Keep so many of the first numbers.
    dimensions: usize,
    normalize: bool,
}

impl VectorShape {
    /// `normalize` left out: as the model's files say.
    pub fn new(
        dimensions: Option<u32>,
        normalize: Option<bool>,
        info: &InfoResponse,
    ) -> Result<Self, ApiError> {
        let size = info.embedding_size;
        let dimensions = dimensions.unwrap_or(size);
        if dimensions == 0 || dimensions > size {
            return Err(ApiError::validation(
                "dimensions",
                format!("`dimensions` must be 1 to {size}. Given: {dimensions}"),
            ));
        }
        Ok(VectorShape {
            dimensions: dimensions as usize,
            normalize: normalize.unwrap_or(info.normalizes),
        })
    }

    /// Cuts first, so that what is left has length 1.
    pub fn apply(self, mut vector: Vec<f32>) -> Vec<f32> {
        vector.truncate(self.dimensions);
        if self.normalize {
            let length = dot(&vector, &vector).sqrt();
            if length > 0.0 {
                for value in &mut vector {
                    *value = (f64::from(*value) / length) as f32;
                }
            }
        }
        vector
    }
}

/// Cosine of the angle between two vectors; 0 when one has no length.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        (dot(a, b) / lengths) as f32
    } else {
        0.0
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> InfoResponse {
        InfoResponse {
            embedding_size: 3,
            normalizes: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_vector_is_cut_before_it_is_normalized() {
        let shape = VectorShape::new(Some(2), None, &info()).expect("a shape");
        assert_eq!(shape.apply(vec![3.0, 4.0, 12.0]), [0.6, 0.8]);
        let plain = VectorShape::new(None, Some(false), &info()).expect("a shape");
        assert_eq!(plain.apply(vec![3.0, 4.0, 12.0]), [3.0, 4.0, 12.0]);
    }

    #[test]
    fn a_zero_vector_stays_as_it_is() {
        let shape = VectorShape::new(None, None, &info()).expect("a shape");
        assert_eq!(shape.apply(vec![0.0; 3]), [0.0; 3]);
    }

    #[test]
    fn zero_or_too_many_dimensions_are_refused() {
        for dimensions in [0, 4] {
            let error = VectorShape::new(Some(dimensions), None, &info()).expect_err("a refusal");
            assert!(error.message.contains("1 to 3"), "{error}");
        }
    }

    #[test]
    fn cosines_do_not_depend_on_lengths() {
        assert_eq!(cosine(&[2.0, 0.0], &[5.0, 0.0]), 1.0);
        assert_eq!(cosine(&[2.0, 0.0], &[0.0, 1.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 1.0]), 0.0);
    }
}
