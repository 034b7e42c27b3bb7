//! Argument structs: what a kernel is told, field for field as its `.cu` file declares it.

/// One field of an argument struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub offset: usize,
    pub bytes: usize,
}

/// How an argument struct lies in memory. The build of the kernels for the host exports the same of the `.cu` side, and
/// a test compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StructLayout {
    pub name: String,
    pub bytes: usize,
    pub fields: Vec<Field>,
}

/// An argument struct, made by [`arguments!`](crate::arguments): plain numbers, addresses (u64) and tensor maps.
pub trait Arguments: Copy {
    fn layout() -> StructLayout;
}

/// Declares an argument struct in the memory layout of C, and says how it lies.
#[macro_export]
macro_rules! arguments {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_visibility:vis $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        $visibility struct $name {
            $($(#[$field_meta])* $field_visibility $field: $type,)*
        }

        impl $crate::device::Arguments for $name {
            fn layout() -> $crate::device::StructLayout {
                $crate::device::StructLayout {
                    name: stringify!($name).into(),
                    bytes: size_of::<$name>(),
                    fields: vec![$($crate::device::Field {
                        name: stringify!($field).into(),
                        offset: std::mem::offset_of!($name, $field),
                        bytes: size_of::<$type>(),
                    },)*],
                }
            }
        }
    };
}
